//! A driver's side of a split virtqueue, written from VIRTIO 1.3, 2.7, for drivers that keep the rules.

use std::ops::Range;

use blk_core::units::GuestAddr;
use blk_core::virtq::{Buffer, RingSetup};

use crate::memory::Memory;

/// Where a ring is.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Entries.
    pub size: u16,
    descriptors: u64,
    driver: u64,
    device: u64,
    /// An indirect table of eight descriptors for each entry.
    tables: u64,
}

/// Descriptors in an indirect table.
pub const TABLE_ENTRIES: usize = 8;

impl Layout {
    /// The parts of a ring of `size` entries, close together from `base` on, which is aligned to 16 bytes.
    pub const fn compact(base: u64, size: u16) -> Self {
        let entries = size as u64;
        let driver = base + 16 * entries;
        let device = (driver + 6 + 2 * entries).next_multiple_of(4);
        let tables = (device + 6 + 8 * entries).next_multiple_of(16);
        Self { size, descriptors: base, driver, device, tables }
    }

    /// What goes into the device's registers.
    pub const fn setup(&self) -> RingSetup {
        RingSetup {
            size: self.size,
            descriptors: GuestAddr(self.descriptors),
            driver: GuestAddr(self.driver),
            device: GuestAddr(self.device),
        }
    }

    /// What the device writes.
    pub const fn device_area(&self) -> Range<u64> {
        self.device..self.device + 6 + 8 * self.size as u64
    }

    /// The first byte after it.
    pub const fn end(&self) -> u64 {
        self.tables + 16 * (TABLE_ENTRIES as u64) * self.size as u64
    }
}

/// A driver's account of its ring.
#[derive(Debug)]
pub struct Ring {
    layout: Layout,
    /// Descriptors in use: bit n for descriptor n.
    busy: u64,
    available: u16,
    used: u16,
    /// The descriptors of each chain, by its head.
    chains: Vec<u64>,
}

impl Ring {
    /// A ring at its beginning. At most 64 entries.
    pub fn new(layout: Layout) -> Self {
        assert!(layout.size <= 64);
        Self { layout, busy: 0, available: 0, used: 0, chains: vec![0; usize::from(layout.size)] }
    }

    /// Makes a chain of `buffers` available, the last `in_table` of them in an indirect table, and returns its head. `None`
    /// if there is no buffer or no room.
    pub fn offer(&mut self, memory: &Memory, buffers: &[Buffer], in_table: usize) -> Option<u16> {
        let in_table = in_table.min(TABLE_ENTRIES).min(buffers.len());
        let (direct, table) = buffers.split_at(buffers.len() - in_table);
        let count = direct.len() + usize::from(!table.is_empty());
        let free: Vec<u16> = (0..self.layout.size).filter(|n| self.busy >> n & 1 == 0).take(count).collect();
        if count == 0 || free.len() < count {
            return None;
        }
        let head = free[0];
        for (place, index) in free.iter().enumerate() {
            let next = free.get(place + 1);
            let flags = u16::from(next.is_some());
            let at = self.layout.descriptors + 16 * u64::from(*index);
            match direct.get(place) {
                Some(buffer) => put_descriptor(memory, at, buffer, flags, next.copied().unwrap_or(0)),
                None => self.put_table(memory, at, head, table),
            }
        }
        let chain = free.iter().fold(0, |chain, index| chain | 1_u64 << index);
        self.busy |= chain;
        self.chains[usize::from(head)] = chain;
        let entry = self.layout.driver + 4 + 2 * u64::from(self.available % self.layout.size);
        memory.put(entry, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        memory.put(self.layout.driver + 2, &self.available.to_le_bytes());
        Some(head)
    }

    fn put_table(&self, memory: &Memory, at: u64, head: u16, table: &[Buffer]) {
        let base = self.layout.tables + 16 * TABLE_ENTRIES as u64 * u64::from(head);
        for (place, buffer) in table.iter().enumerate() {
            let flags = u16::from(place + 1 < table.len());
            put_descriptor(memory, base + 16 * place as u64, buffer, flags, place as u16 + 1);
        }
        let whole = Buffer { addr: GuestAddr(base), len: 16 * table.len() as u32, writable: false };
        // VIRTQ_DESC_F_INDIRECT.
        put_descriptor(memory, at, &whole, 4, 0);
    }

    /// What the device returned next, with its length; its descriptors are free again.
    pub fn collect(&mut self, memory: &Memory) -> Option<(u16, u32)> {
        if self.used == self.used_index(memory) {
            return None;
        }
        let entry = self.layout.device + 4 + 8 * u64::from(self.used % self.layout.size);
        self.used = self.used.wrapping_add(1);
        let id = u32::from_le_bytes(memory.get(entry));
        let head = u16::try_from(id).expect("a head that was offered");
        let chain = std::mem::take(&mut self.chains[usize::from(head)]);
        assert_ne!(chain, 0, "{head} was returned, and was not out");
        self.busy &= !chain;
        Some((head, u32::from_le_bytes(memory.get(entry + 4))))
    }

    /// Says when to interrupt: at `event` with EVENT_IDX, else not at all if `silent`.
    pub fn wish(&self, memory: &Memory, event: u16, silent: bool) {
        memory.put(self.layout.driver, &u16::from(silent).to_le_bytes());
        memory.put(self.layout.driver + 4 + 2 * u64::from(self.layout.size), &event.to_le_bytes());
    }

    /// The free-running index of the available ring.
    pub const fn available_index(&self) -> u16 {
        self.available
    }

    /// The device's index.
    pub fn used_index(&self, memory: &Memory) -> u16 {
        u16::from_le_bytes(memory.get(self.layout.device + 2))
    }

    /// Where the device wants to be notified.
    pub fn available_event(&self, memory: &Memory) -> u16 {
        u16::from_le_bytes(memory.get(self.layout.device + 4 + 8 * u64::from(self.layout.size)))
    }
}

/// 2.7.5: NEXT is 1, WRITE is 2.
fn put_descriptor(memory: &Memory, at: u64, buffer: &Buffer, flags: u16, next: u16) {
    let flags = flags | u16::from(buffer.writable) << 1;
    memory.put(at, &buffer.addr.0.to_le_bytes());
    memory.put(at + 8, &buffer.len.to_le_bytes());
    memory.put(at + 12, &flags.to_le_bytes());
    memory.put(at + 14, &next.to_le_bytes());
}
