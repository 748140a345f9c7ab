//! A guest with a driver, for the examples: it writes a sector, flushes, and reads it back.

#![allow(dead_code, reason = "each example uses some of it")]

use blk_core::memory::{GuestMemory, MemoryError};
use blk_core::units::GuestAddr;
use virtio_blk_model::front::mmio::register;

/// The machine, as a guest sees it.
pub(crate) trait Machine {
    /// Its memory.
    fn memory(&self) -> &impl GuestMemory;
    /// Reads 32 bits at `offset` of the device's registers.
    fn load(&mut self, offset: u64) -> u32;
    /// Writes them.
    fn store(&mut self, offset: u64, value: u32);
    /// Halts until there is an interrupt.
    fn halt(&mut self);
}

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const STATUS: u64 = 0x4100;
const DATA: u64 = 0x5000;

/// Boots, and uses the disk.
pub(crate) fn run(machine: &mut impl Machine) -> Result<(), MemoryError> {
    boot(machine)?;
    machine.memory().write(GuestAddr(DATA), &[b'x'; 512])?;
    let out = request(machine, 1, Kind::Out, 7)?;
    let flushed = request(machine, 2, Kind::Flush, 0)?;
    machine.memory().write(GuestAddr(DATA), &[0; 512])?;
    let read = request(machine, 3, Kind::In, 7)?;
    let mut back = [0; 512];
    machine.memory().read(GuestAddr(DATA), &mut back)?;
    println!("guest: OUT, sector 7: status {out}; FLUSH: status {flushed}; IN: status {read}");
    assert_eq!((out, flushed, read, back), (0, 0, 0, [b'x'; 512]));
    Ok(())
}

/// Resets the device and sets it up: VIRTIO 1.3, 3.1.1.
pub(crate) fn boot(machine: &mut impl Machine) -> Result<(), MemoryError> {
    machine.store(register::STATUS, 0);
    // The device uses the rings no more. Their indices begin at 0.
    machine.memory().write(GuestAddr(AVAILABLE), &[0; 4])?;
    machine.memory().write(GuestAddr(USED), &[0; 4])?;
    // ACKNOWLEDGE and DRIVER; FLUSH (bit 9) and VERSION_1 (bit 32); FEATURES_OK; the ring; DRIVER_OK.
    #[rustfmt::skip]
    let boot = [
        (register::STATUS, 3), (register::DRIVER_FEATURES_SEL, 0), (register::DRIVER_FEATURES, 1 << 9),
        (register::DRIVER_FEATURES_SEL, 1), (register::DRIVER_FEATURES, 1), (register::STATUS, 11),
        (register::QUEUE_SIZE, 8), (register::QUEUE_DESC_LOW, DESCRIPTORS as u32),
        (register::QUEUE_DRIVER_LOW, AVAILABLE as u32), (register::QUEUE_DEVICE_LOW, USED as u32),
        (register::QUEUE_READY, 1), (register::STATUS, 15),
    ];
    boot.into_iter().for_each(|(offset, value)| machine.store(offset, value));
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    In = 0,
    Out = 1,
    Flush = 4,
}

/// The `n`th request since the device was set up, awaited. Returns its status.
pub(crate) fn request(
    machine: &mut impl Machine,
    n: u16,
    kind: Kind,
    sector: u64,
) -> Result<u8, MemoryError> {
    send(machine, n, kind, sector)?;
    while machine.memory().load_u16_acquire(GuestAddr(USED + 2))? != n {
        machine.halt();
    }
    // The line stays up until it is acknowledged.
    let raised = machine.load(register::INTERRUPT_STATUS);
    machine.store(register::INTERRUPT_ACK, raised);
    let mut status = [0xff];
    machine.memory().read(GuestAddr(STATUS), &mut status)?;
    Ok(status[0])
}

/// Makes it available, and notifies the device.
pub(crate) fn send(machine: &mut impl Machine, n: u16, kind: Kind, sector: u64) -> Result<(), MemoryError> {
    const NEXT: u64 = 1 << 32;
    const DEVICE_WRITES: u64 = 2 << 32;
    let data = if kind == Kind::In { 512 | DEVICE_WRITES } else { 512 };
    let after_header = if kind == Kind::Flush { 2 << 48 } else { 1 << 48 };
    let chain =
        [[HEADER, 16 | NEXT | after_header], [DATA, data | NEXT | 2 << 48], [STATUS, 1 | DEVICE_WRITES]];
    let memory = machine.memory();
    for (start, words) in [(DESCRIPTORS, chain.as_flattened()), (HEADER, &[kind as u64, sector])] {
        for (at, word) in (start..).step_by(8).zip(words) {
            memory.write(GuestAddr(at), &word.to_le_bytes())?;
        }
    }
    // The available ring's entries are all 0, which is this chain.
    memory.store_u16_release(GuestAddr(AVAILABLE + 2), n)?;
    machine.store(register::QUEUE_NOTIFY, 0);
    Ok(())
}
