//! A mapping that guest memory is made of.

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::mmap::MmapRegion;

use super::bus_error::{BusErrors, Watch};
use super::dumps::keep_out_of_core_dumps;

/// A mapping, of this process alone or of a client's memory.
#[derive(Debug)]
pub struct Mapping {
    /// Dropped first: the list of watched mappings must not name what is unmapped.
    _watch: Option<Watch>,
    region: MmapRegion,
}

impl Mapping {
    /// A mapping of a client's file in pages of `page` bytes, at a multiple of which it begins. It is kept out of core dumps. If a
    /// part of it goes away, `errors` is told, and the part reads as zeroes from then on.
    #[must_use]
    pub fn of_client(region: MmapRegion, page: usize, errors: Arc<BusErrors>) -> Self {
        // If that fails, a dump is larger.
        let _ = NonNull::new(region.as_ptr()).map(|start| keep_out_of_core_dumps(start, region.size()));
        let watch = Watch::new(region.as_ptr(), region.size(), page, errors);
        Self { _watch: Some(watch), region }
    }
}

impl From<MmapRegion> for Mapping {
    fn from(region: MmapRegion) -> Self {
        Self { _watch: None, region }
    }
}

impl Deref for Mapping {
    type Target = MmapRegion;

    fn deref(&self) -> &MmapRegion {
        &self.region
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use blk_core::memory::GuestMemory as _;
    use blk_core::units::GuestAddr;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use vm_memory::FileOffset;

    use super::*;
    use crate::memory::{MappedMemory, Window};

    fn mapped(flags: MemfdFlags, bytes: usize, page: usize) -> (File, MappedMemory, Arc<BusErrors>) {
        let file = File::from(memfd_create("memory", MemfdFlags::CLOEXEC | flags).unwrap());
        ftruncate(&file, bytes as u64).unwrap();
        let region = MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), bytes).unwrap();
        let errors = Arc::new(BusErrors::default());
        let mapping = Arc::new(Mapping::of_client(region, page, Arc::clone(&errors)));
        let window = Window { addr: GuestAddr(0), mapping, offset: 0, len: bytes };
        (file, MappedMemory::windows(vec![window]).unwrap(), errors)
    }

    #[test]
    fn a_file_that_is_cut_short_reads_as_zeroes_and_is_told_of() {
        let (_, bystander, untold) = mapped(MemfdFlags::empty(), 0x4000, 4096);
        let (file, memory, errors) = mapped(MemfdFlags::empty(), 0x4000, 4096);
        memory.write(GuestAddr(0x2ffe), &[1, 2, 3, 4]).unwrap();
        ftruncate(&file, 0x3000).unwrap();
        assert!(!errors.have_come());
        let mut back = [9; 4];
        memory.read(GuestAddr(0x2ffe), &mut back).unwrap();
        assert_eq!(back, [1, 2, 0, 0]);
        assert!(errors.have_come());
        memory.write(GuestAddr(0x3ffc), &[5; 4]).unwrap();
        memory.store_u16_release(GuestAddr(0x3000), 7).unwrap();
        assert_eq!(memory.load_u16_acquire(GuestAddr(0x3000)), Ok(7));
        bystander.write(GuestAddr(0), &[1]).unwrap();
        assert!(!untold.have_come());
    }

    /// The pool of huge pages is empty, as it is nearly everywhere.
    #[test]
    fn huge_pages_that_the_host_has_not_read_as_zeroes() {
        let huge = 2 << 20;
        let (_file, memory, errors) = mapped(MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB, huge, huge);
        let mut back = [9; 4];
        memory.read(GuestAddr(0x1000), &mut back).unwrap();
        assert_eq!(back, [0; 4]);
        let free = std::fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap();
        assert_eq!(errors.have_come(), free.trim() == "0");
        memory.write(GuestAddr(0x1f_0000), &[1]).unwrap();
    }

    /// The list is used again: a mapping that is gone is no longer in it.
    #[test]
    fn a_mapping_that_is_gone_is_forgotten() {
        for _ in 0..3 {
            let (file, memory, errors) = mapped(MemfdFlags::empty(), 0x1000, 4096);
            ftruncate(&file, 0).unwrap();
            memory.read(GuestAddr(0), &mut [0]).unwrap();
            assert!(errors.have_come());
        }
    }
}
