use std::sync::Mutex;

use vm_memory::mmap::MmapRegion;

use super::*;

const A: GuestAddr = GuestAddr(0x1000);

fn two_regions() -> MappedMemory {
    // Adjacent for the guest, apart in this process.
    MappedMemory::anonymous(&[(A, 0x1000), (GuestAddr(0x2000), 0x1000), (GuestAddr(0x8000), 0x1000)]).unwrap()
}

#[test]
fn copies_cross_from_one_region_into_the_next_and_stop_at_a_hole() {
    let memory = two_regions();
    let data: Vec<u8> = (0..=255).collect();
    for start in [0x1f81, 0x1f80, 0x1000, 0x2f00] {
        let mut back = [0; 256];
        memory.write(GuestAddr(start), &data).unwrap();
        memory.read(GuestAddr(start), &mut back).unwrap();
        assert_eq!(back.as_slice(), data, "{start:#x}");
    }
    assert_eq!(memory.write(GuestAddr(0x2f01), &data), Err(MemoryError));
    assert_eq!(memory.read(GuestAddr(0xfff), &mut [0]), Err(MemoryError));
    assert!(memory.contains(A, 0x2000) && !memory.contains(A, 0x2001));
    assert!(!memory.contains(GuestAddr(0x0), 1) && memory.contains(GuestAddr(0x8fff), 1));
}

#[test]
fn a_range_that_wraps_past_2_to_the_64_is_not_memory() {
    let top = MappedMemory::anonymous(&[(GuestAddr(u64::MAX - 0xffff), 0x1000)]).unwrap();
    assert!(top.contains(GuestAddr(u64::MAX - 0xffff), 0x1000));
    assert!(!top.contains(GuestAddr(u64::MAX - 0xffff), u64::MAX));
    assert_eq!(top.read(GuestAddr(u64::MAX), &mut [0; 2]), Err(MemoryError));
    assert_eq!(two_regions().read(GuestAddr(u64::MAX), &mut [0; 2]), Err(MemoryError));
}

#[test]
fn indices_are_little_endian_aligned_and_inside_one_region() {
    let memory = two_regions();
    memory.store_u16_release(A, 0x1234).unwrap();
    let mut bytes = [0; 2];
    memory.read(A, &mut bytes).unwrap();
    assert_eq!(bytes, [0x34, 0x12]);
    assert_eq!(memory.load_u16_acquire(A), Ok(0x1234));
    assert_eq!(memory.load_u16_acquire(GuestAddr(0x1001)), Err(MemoryError));
    assert_eq!(memory.load_u16_acquire(GuestAddr(0x9000)), Err(MemoryError));
}

#[test]
fn words_are_the_bytes_that_a_copy_has_wherever_they_are() {
    let memory = two_regions();
    let data: Vec<u8> = (0..=255).cycle().take(0x2000).collect();
    memory.write(A, &data).unwrap();
    // Aligned or not, near the end of a region, across two, at a hole and beyond everything.
    let ends = [0x1000, 0x1f80, 0x2f80, 0x8000, u64::MAX - 32];
    for addr in ends.into_iter().flat_map(|end| end..end.saturating_add(0x88)).map(GuestAddr) {
        let mut bytes = [0; 16];
        let copied = memory.read(addr, &mut bytes).map(|()| u128::from_le_bytes(bytes));
        let words = memory.read_u64_pair(addr).map(|[low, high]| u128::from(low) | u128::from(high) << 64);
        assert_eq!(words, copied, "{addr:?}");

        let mut bytes = [0; 8];
        let written = memory.write_u32_pair(addr, [0x0403_0201, 0x0807_0605]);
        assert_eq!(written.is_ok(), memory.contains(addr, 8), "{addr:?}");
        if written.is_ok() {
            memory.read(addr, &mut bytes).unwrap();
            assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8], "{addr:?}");
        }
    }
}

#[test]
fn an_anchor_outlives_the_memory_that_gave_it() {
    let memory = MappedMemory::shared(&[(A, 0x1000)]).unwrap();
    memory.write(A, b"kept").unwrap();
    let range = memory.host_range(A, 4).unwrap();
    let anchor = memory.anchor();
    drop(memory);
    let mut bytes = [0; 4];
    // SAFETY: the anchor keeps the range mapped.
    unsafe { copy_out(range.start, &mut bytes) };
    assert_eq!(&bytes, b"kept");
    drop(anchor);
}

#[test]
fn windows_are_parts_of_mappings_at_any_offset_and_never_overlap() {
    let mapping = Arc::new(Mapping::from(MmapRegion::new(0x3000).unwrap()));
    let window =
        |addr, offset, len| Window { addr: GuestAddr(addr), mapping: Arc::clone(&mapping), offset, len };
    let memory =
        MappedMemory::windows(vec![window(0x9000, 0x1001, 0x333), window(0x1000, 0, 0x801)]).unwrap();
    memory.write(GuestAddr(0x9332), &[7]).unwrap();
    assert!(memory.contains(GuestAddr(0x1000), 0x801) && !memory.contains(GuestAddr(0x1000), 0x802));
    assert_eq!(memory.write(GuestAddr(0x9333), &[7]), Err(MemoryError));
    let overlap = MappedMemory::windows(vec![window(0x1000, 0, 0x801), window(0x1800, 0x1000, 0x10)]);
    assert!(overlap.unwrap_err().to_string().contains("overlap"));
    assert!(MappedMemory::windows(vec![window(0x1000, 0x2fff, 2)]).is_err());
    assert!(MappedMemory::windows(vec![window(u64::MAX, 0, 2)]).is_err());
}

/// Memory of another process, which the test plays.
#[derive(Debug)]
struct Elsewhere(u64, Mutex<Vec<u8>>);

impl RemoteMemory for Elsewhere {
    fn read(&self, addr: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError> {
        let at = (addr.0 - self.0) as usize;
        into.copy_from_slice(&self.1.lock().unwrap()[at..at + into.len()]);
        Ok(())
    }

    fn write(&self, addr: GuestAddr, from: &[u8]) -> Result<(), MemoryError> {
        let at = (addr.0 - self.0) as usize;
        self.1.lock().unwrap()[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }
}

#[test]
fn accesses_cross_between_memory_that_is_mapped_and_memory_that_is_not() {
    let mapping = Arc::new(Mapping::from(MmapRegion::new(0x2000).unwrap()));
    let window =
        |addr, offset| Window { addr: GuestAddr(addr), mapping: Arc::clone(&mapping), offset, len: 0x1000 };
    let elsewhere = Arc::new(Elsewhere(0x2000, Mutex::new(vec![0; 0x1000])));
    let remote = |addr, len| RemoteWindow {
        addr: GuestAddr(addr),
        len,
        memory: Arc::clone(&elsewhere) as Arc<dyn RemoteMemory>,
    };
    let both = |addr, len| {
        MappedMemory::with_remote(vec![window(0x1000, 0), window(0x3000, 0x1000)], vec![remote(addr, len)])
    };
    let memory = both(0x2000, 0x1000).unwrap();
    let data: Vec<u8> = (0..0x1200).map(|n| (n % 251) as u8).collect();
    memory.write(GuestAddr(0x1f00), &data).unwrap();
    let mut back = vec![0; data.len()];
    memory.read(GuestAddr(0x1f00), &mut back).unwrap();
    assert_eq!(back, data);
    assert_eq!(elsewhere.1.lock().unwrap()[..], data[0x100..0x1100]);
    assert!(memory.contains(A, 0x3000) && !memory.contains(A, 0x3001));
    assert!(memory.host_range(GuestAddr(0x2000), 1).is_none());
    memory.store_u16_release(GuestAddr(0x2ffe), 0x1234).unwrap();
    assert_eq!(memory.load_u16_acquire(GuestAddr(0x2ffe)), Ok(0x1234));
    assert_eq!(memory.load_u16_acquire(GuestAddr(0x2fff)), Err(MemoryError));
    for (addr, len) in [(0x1fff, 2), (0x2000, 0x1001), (0x3fff, 1), (0xfff, 2), (0x2000, 0), (u64::MAX, 2)] {
        assert!(both(addr, len).is_err(), "{addr:#x} {len:#x}");
    }
}

#[test]
fn regions_out_of_order_are_refused_with_the_remedy() {
    let error = MappedMemory::anonymous(&[(GuestAddr(0x2000), 0x1000), (A, 0x1000)]).unwrap_err();
    assert!(error.to_string().contains("ascending order"), "{error}");
}
