//! Guest memory that knows what the guest has lent to its device.

use std::cell::Cell;
use std::ops::Range;

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::units::GuestAddr;

/// Memory from address 0 on. As long as it is guarded, the device may write only what the guest has lent it.
pub struct Memory {
    bytes: Vec<Cell<u8>>,
    lent: Vec<Cell<bool>>,
    guarded: Cell<bool>,
}

impl Memory {
    /// `len` bytes of zeroes, of which nothing is lent.
    pub fn new(len: usize) -> Self {
        Self { bytes: vec![Cell::new(0); len], lent: vec![Cell::new(false); len], guarded: Cell::new(true) }
    }

    /// From now on the device may write anywhere: the guest gives it addresses of which it keeps no account.
    pub fn unguard(&self) {
        self.guarded.set(false);
    }

    /// From now on the device may write only what it was lent, again.
    pub fn guard(&self) {
        self.guarded.set(true);
    }

    /// Lets the device write the range from now on.
    pub fn lend(&self, range: Range<u64>) {
        self.set_lent(range, true);
    }

    /// The device may not write the range any more.
    pub fn take_back(&self, range: Range<u64>) {
        self.set_lent(range, false);
    }

    /// The guest writes. What does not fit is left out.
    pub fn put(&self, addr: u64, bytes: &[u8]) {
        let cells = self.bytes.iter().skip(to_usize(addr));
        cells.zip(bytes).for_each(|(cell, byte)| cell.set(*byte));
    }

    /// The guest writes anything over whatever it has.
    pub fn scribble(&self, at: u16, value: u32) {
        self.put(u64::from(at) % self.bytes.len() as u64, &value.to_le_bytes());
    }

    /// The guest reads. Beyond the end it reads zeroes.
    pub fn get<const N: usize>(&self, addr: u64) -> [u8; N] {
        std::array::from_fn(|i| self.bytes.get(to_usize(addr).saturating_add(i)).map_or(0, Cell::get))
    }

    fn set_lent(&self, range: Range<u64>, lent: bool) {
        for flag in self.lent.get(to_usize(range.start)..to_usize(range.end)).expect("within memory") {
            flag.set(lent);
        }
    }

    fn range(&self, addr: GuestAddr, len: usize) -> Result<Range<usize>, MemoryError> {
        let start = usize::try_from(addr.0).map_err(|_| MemoryError)?;
        let end = start.checked_add(len).filter(|end| *end <= self.bytes.len()).ok_or(MemoryError)?;
        Ok(start..end)
    }
}

impl GuestMemory for Memory {
    fn read(&self, addr: GuestAddr, into: &mut [u8]) -> Result<(), MemoryError> {
        let range = self.range(addr, into.len())?;
        into.iter_mut().zip(&self.bytes[range]).for_each(|(to, from)| *to = from.get());
        Ok(())
    }

    fn write(&self, addr: GuestAddr, from: &[u8]) -> Result<(), MemoryError> {
        let range = self.range(addr, from.len())?;
        if self.guarded.get() {
            let lent = self.lent[range.clone()].iter().all(Cell::get);
            assert!(lent, "the device wrote {} bytes at {addr:?}, which it was not lent", from.len());
        }
        self.bytes[range].iter().zip(from).for_each(|(to, from)| to.set(*from));
        Ok(())
    }

    fn load_u16_acquire(&self, addr: GuestAddr) -> Result<u16, MemoryError> {
        assert!(addr.0.is_multiple_of(2), "a device loads aligned indices only");
        let mut bytes = [0; 2];
        self.read(addr, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn store_u16_release(&self, addr: GuestAddr, value: u16) -> Result<(), MemoryError> {
        assert!(addr.0.is_multiple_of(2), "a device stores aligned indices only");
        self.write(addr, &value.to_le_bytes())
    }

    fn contains(&self, addr: GuestAddr, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.range(addr, len).is_ok())
    }
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}
