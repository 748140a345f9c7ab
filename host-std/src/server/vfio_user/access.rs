//! Routing of a client's accesses to regions.

use blk_core::bus::{Region, Width};
use blk_core::pci::{Bar, Function};
use rustix::io::Errno;

use super::protocol::RegionAccess;

const CONFIG: u32 = 7;
const CONFIG_BYTES: u64 = 256;

/// Bytes of each region of a function.
#[derive(Debug)]
pub(super) struct Regions([u64; Self::COUNT as usize]);

impl Regions {
    /// Regions of a PCI device (`linux/vfio.h`, VFIO_PCI_NUM_REGIONS): six BARs, ROM, configuration space, VGA.
    pub(super) const COUNT: u32 = 9;

    pub(super) fn new(function: &Function) -> Self {
        let mut regions = [0; Self::COUNT as usize];
        for (size, bar) in regions.iter_mut().zip(&function.bars) {
            *size = match *bar {
                Bar::Absent => 0,
                Bar::Io { bytes } | Bar::Memory32 { bytes } | Bar::Memory64 { bytes, .. } => bytes.into(),
            };
        }
        regions[CONFIG as usize] = CONFIG_BYTES;
        Self(regions)
    }

    /// Bytes of a region; 0 of one that is not there.
    pub(super) fn bytes(&self, index: u32) -> Result<u64, Errno> {
        self.0.get(index as usize).copied().ok_or(Errno::INVAL)
    }

    /// Which region an access is to, if it lies within.
    pub(super) fn find(&self, access: RegionAccess) -> Result<Region, Errno> {
        let end = access.offset.checked_add(access.count.into()).ok_or(Errno::INVAL)?;
        match access.region {
            region if end > self.bytes(region)? => Err(Errno::INVAL),
            CONFIG => Ok(Region::Config),
            bar => Ok(Region::Bar(bar as u8)),
        }
    }
}

/// An access as the bus makes it: 1, 2, 4 or 8 bytes are one, whatever else is taken apart where it is aligned.
pub(super) struct Pieces {
    offset: u64,
    left: u32,
    whole: bool,
}

impl Pieces {
    pub(super) fn new(access: RegionAccess) -> Self {
        let whole = Width::from_bytes(access.count as usize).is_some();
        Self { offset: access.offset, left: access.count, whole }
    }
}

impl Iterator for Pieces {
    type Item = (u64, Width);

    fn next(&mut self) -> Option<Self::Item> {
        let (offset, left) = (self.offset, self.left);
        let fits = |bytes: &u32| *bytes <= left && offset.is_multiple_of(u64::from(*bytes));
        let bytes = if self.whole { left } else { [4, 2, 1].into_iter().find(fits)? };
        let width = Width::from_bytes(bytes as usize)?;
        self.offset = offset.wrapping_add(bytes.into());
        self.left = left - bytes;
        Some((offset, width))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(offset: u64, count: u32) -> Vec<(u64, u8)> {
        let access = RegionAccess { offset, region: 0, count };
        Pieces::new(access).map(|(offset, width)| (offset, width.bytes())).collect()
    }

    #[test]
    fn accesses_of_a_register_s_size_are_one_and_others_are_taken_apart() {
        for count in [1, 2, 4, 8] {
            assert_eq!(pieces(3, count), [(3, count as u8)]);
        }
        assert_eq!(pieces(0, 0), []);
        assert_eq!(pieces(1, 7), [(1, 1), (2, 2), (4, 4)]);
        assert_eq!(pieces(2, 12), [(2, 2), (4, 4), (8, 4), (12, 2)]);
        assert_eq!(pieces(0, 256).len(), 64);
    }
}
