//! Guest memory that is cheap to clone and to hash.

use std::boxed::Box;
use std::cell::RefCell;
use std::vec::Vec;

use serde::{Serialize, Serializer};

use crate::memory::{GuestMemory, MemoryError};
use crate::sim::layout;
use crate::units::{GuestAddr, SECTOR_BYTES};

const SECTOR: usize = SECTOR_BYTES as usize;

/// The memory that [`layout`] describes, keeping only what can differ between two states.
///
/// RAM grows with the highest byte written; source pages are computed, and writes to them are ignored; a sink sector
/// is one value where all its bytes are equal. Between and beyond these ranges there is no memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimMemory {
    contents: RefCell<Contents>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Contents {
    /// The lowest bytes of RAM; the rest of it is zero.
    ram: Vec<u8>,
    /// Sink sectors that were written, in order of their number within the sink pages.
    sinks: Vec<(u16, Sink)>,
}

/// A sink sector. Canonical: `Mixed` is never uniform.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sink {
    Uniform(u8),
    Mixed(Box<[u8; SECTOR]>),
}

/// A range that lies within one kind of memory.
enum Place {
    /// Byte offset in RAM.
    Ram(usize),
    /// Byte offset in the source pages.
    Source(u64),
    /// Byte offset in the sink pages.
    Sink(usize),
}

impl SimMemory {
    /// Memory of zeroes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl GuestMemory for SimMemory {
    fn read(&self, addr: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError> {
        match place(addr, into.len() as u64)? {
            Place::Ram(offset) => self.contents.borrow().read_ram(offset, into),
            Place::Source(offset) => {
                for (byte, at) in into.iter_mut().zip(offset..) {
                    *byte = (at / layout::PAGE_BYTES) as u8;
                }
            }
            Place::Sink(offset) => self.contents.borrow().read_sink(offset, into),
        }
        Ok(())
    }

    fn write(&self, addr: GuestAddr, from: &[u8]) -> Result<(), MemoryError> {
        match place(addr, from.len() as u64)? {
            Place::Ram(offset) => self.contents.borrow_mut().write_ram(offset, from),
            Place::Source(_) => {}
            Place::Sink(offset) => self.contents.borrow_mut().write_sink(offset, from),
        }
        Ok(())
    }

    fn load_u16_acquire(&self, addr: GuestAddr) -> Result<u16, MemoryError> {
        if !addr.0.is_multiple_of(2) {
            return Err(MemoryError);
        }
        let mut bytes = [0; 2];
        self.read(addr, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn store_u16_release(&self, addr: GuestAddr, value: u16) -> Result<(), MemoryError> {
        if !addr.0.is_multiple_of(2) {
            return Err(MemoryError);
        }
        self.write(addr, &value.to_le_bytes())
    }

    fn contains(&self, addr: GuestAddr, len: u64) -> bool {
        place(addr, len).is_ok()
    }

    /// One thread: nothing to order.
    fn full_fence(&self) {}
}

impl Serialize for SimMemory {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let contents = self.contents.borrow();
        (Bytes(&contents.ram), &contents.sinks).serialize(serializer)
    }
}

impl Serialize for Sink {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Uniform(value) => (0_u8, value).serialize(serializer),
            Self::Mixed(bytes) => (1_u8, Bytes(bytes.as_slice())).serialize(serializer),
        }
    }
}

/// Serialized at once instead of byte by byte.
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl Contents {
    fn read_ram(&self, offset: usize, into: &mut [u8]) {
        let known = self.ram.len().saturating_sub(offset).min(into.len());
        let (head, tail) = into.split_at_mut(known);
        if known != 0 {
            head.copy_from_slice(&self.ram[offset..offset + known]);
        }
        tail.fill(0);
    }

    fn write_ram(&mut self, offset: usize, from: &[u8]) {
        let end = offset + from.len();
        if self.ram.len() < end {
            self.ram.resize(end, 0);
        }
        self.ram[offset..end].copy_from_slice(from);
    }

    fn read_sink(&self, offset: usize, into: &mut [u8]) {
        for (sector, within, piece) in pieces(offset, into.len()) {
            let into = &mut into[piece];
            match self.sinks.binary_search_by_key(&sector, |entry| entry.0).map(|at| &self.sinks[at].1) {
                Ok(Sink::Uniform(value)) => into.fill(*value),
                Ok(Sink::Mixed(bytes)) => into.copy_from_slice(&bytes[within..within + into.len()]),
                Err(_) => into.fill(0),
            }
        }
    }

    fn write_sink(&mut self, offset: usize, from: &[u8]) {
        for (sector, within, piece) in pieces(offset, from.len()) {
            let from = &from[piece];
            let at = match self.sinks.binary_search_by_key(&sector, |entry| entry.0) {
                Ok(at) => at,
                Err(at) => {
                    self.sinks.insert(at, (sector, Sink::Uniform(0)));
                    at
                }
            };
            let sink = &mut self.sinks[at].1;
            let mut bytes = match sink {
                Sink::Uniform(value) => [*value; SECTOR],
                Sink::Mixed(bytes) => **bytes,
            };
            bytes[within..within + from.len()].copy_from_slice(from);
            *sink = match uniform(&bytes) {
                Some(value) => Sink::Uniform(value),
                None => Sink::Mixed(Box::new(bytes)),
            };
        }
    }
}

/// The value that all bytes have, if they have one.
pub(super) fn uniform(bytes: &[u8]) -> Option<u8> {
    let (&first, rest) = bytes.split_first()?;
    rest.iter().all(|&byte| byte == first).then_some(first)
}

/// Cuts a range at sector boundaries: sector, first byte within it, and the piece of the caller's buffer.
fn pieces(offset: usize, len: usize) -> impl Iterator<Item = (u16, usize, core::ops::Range<usize>)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done;
        let within = at % SECTOR;
        let take = (SECTOR - within).min(len - done);
        let piece = done..done + take;
        done += take;
        Some(((at / SECTOR) as u16, within, piece))
    })
}

fn place(addr: GuestAddr, len: u64) -> Result<Place, MemoryError> {
    let end = addr.0.checked_add(len).ok_or(MemoryError)?;
    let within = |first: u64, last: u64| addr.0 >= first && end <= last;
    if within(0, layout::RAM_BYTES) {
        Ok(Place::Ram(addr.0 as usize))
    } else if within(layout::SOURCES, layout::SINKS) {
        Ok(Place::Source(addr.0 - layout::SOURCES))
    } else if within(layout::SINKS, layout::BYTES) {
        Ok(Place::Sink((addr.0 - layout::SINKS) as usize))
    } else {
        Err(MemoryError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_reads_back_what_was_written_and_zeroes_elsewhere() {
        let memory = SimMemory::new();
        memory.write(GuestAddr(10), &[1, 2, 3]).unwrap();
        let mut bytes = [9; 6];
        memory.read(GuestAddr(8), &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0, 1, 2, 3, 0]);
        memory.store_u16_release(GuestAddr(0x1ffe), 0x1234).unwrap();
        assert_eq!(memory.load_u16_acquire(GuestAddr(0x1ffe)), Ok(0x1234));
        assert_eq!(memory.load_u16_acquire(GuestAddr(1)), Err(MemoryError), "not aligned");
    }

    #[test]
    fn a_source_page_holds_its_value_and_cannot_be_changed() {
        let memory = SimMemory::new();
        memory.write(layout::source(7), &[1; 512]).unwrap();
        let mut bytes = [0; 4096];
        memory.read(layout::source(7), &mut bytes).unwrap();
        assert_eq!(uniform(&bytes), Some(7));
        assert_eq!(memory, SimMemory::new());
    }

    #[test]
    fn a_sink_sector_keeps_its_bytes_and_is_one_value_where_they_are_equal() {
        let memory = SimMemory::new();
        let at = layout::sink(3).checked_add(510).unwrap();
        memory.write(at, &[5; 4]).unwrap();
        let mut bytes = [0; 1024];
        memory.read(layout::sink(3), &mut bytes).unwrap();
        assert_eq!(bytes.iter().enumerate().filter(|&(_, &b)| b == 5).map(|(i, _)| i).sum::<usize>(), 2046);
        memory.write(layout::sink(3), &[5; 1024]).unwrap();
        let whole = SimMemory::new();
        whole.write(layout::sink(3), &[5; 1024]).unwrap();
        assert_eq!(memory, whole, "the same contents are the same state, however they came about");
    }

    #[test]
    fn there_is_no_memory_between_the_ranges() {
        let memory = SimMemory::new();
        assert!(memory.contains(GuestAddr(0), layout::RAM_BYTES));
        for (addr, len) in [
            (0, layout::RAM_BYTES + 1),
            (layout::RAM_BYTES, 1),
            (layout::SINKS - 1, 2),
            (layout::BYTES, 1),
            (u64::MAX, 2),
        ] {
            assert!(!memory.contains(GuestAddr(addr), len), "{addr:#x}+{len:#x}");
        }
        assert_eq!(memory.read(GuestAddr(layout::BYTES), &mut [0]), Err(MemoryError));
    }
}
