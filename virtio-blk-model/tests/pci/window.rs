//! VIRTIO's window in configuration space (VIRTIO 1.3, 4.1.4.9).

use blk_core::bus::{Region, Width, WriteStatus};
use virtio_blk_model::front::pci::{ISR_QUEUE, common as field, structure};

use crate::common::*;
use crate::{BUS_MASTER, PciMachine, WRITEBACK, command, structure_of, up};

/// Reads and writes as a driver does that cannot reach the BAR.
struct Window<'a> {
    machine: &'a mut PciMachine,
    at: u64,
}

impl Window<'_> {
    fn look(&mut self, bar: u64, offset: u64, bytes: u64) {
        self.machine.configure(self.at + 4, Width::Byte, bar);
        self.machine.configure(self.at + 8, Width::Dword, offset);
        self.machine.configure(self.at + 12, Width::Dword, bytes);
    }

    fn get(&mut self, offset: u64, bytes: u64) -> u64 {
        self.look(0, offset, bytes);
        let width = Width::from_bytes(bytes as usize).unwrap();
        self.machine.configuration(self.at + 16, width)
    }

    fn set(&mut self, offset: u64, bytes: u64, value: u64) -> WriteStatus {
        self.look(0, offset, bytes);
        let width = Width::from_bytes(bytes as usize).unwrap();
        self.machine.store(Region::Config, self.at + 16, width, value)
    }
}

/// 4.1.4.9, as firmware uses it while the BAR is not decoded.
#[test]
fn everything_is_reached_through_the_window_with_memory_off() {
    let mut machine = up::<1>();
    command(&mut machine, BUS_MASTER);
    assert_eq!(machine.read(field::NUM_QUEUES, Width::Word), 0xffff, "the BAR is not decoded");
    machine.header(HEADER, IN, 6);
    machine.offer(0, &[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    let at = structure_of(&mut machine, 5);
    let mut window = Window { machine: &mut machine, at };
    assert_eq!(window.get(structure::DEVICE, 4), SECTORS);
    assert_eq!(window.get(field::DEVICE_STATUS, 1), 15);
    assert_eq!(window.set(structure::NOTIFY, 2, 0), WriteStatus::Done);
    window.machine.poll();
    assert!(window.machine.line);
    assert_eq!(window.get(structure::ISR, 1), ISR_QUEUE.into());
    assert!(!window.machine.line);
    assert_eq!(window.set(structure::DEVICE + WRITEBACK, 1, 0), WriteStatus::Pending);
    assert!(!window.machine.poll().pending_write);
    assert_eq!(window.set(field::DEVICE_STATUS, 1, 0), WriteStatus::Done);
    assert_eq!(window.get(field::DEVICE_STATUS, 1), 0);
    assert_eq!(machine.reap(0).unwrap().1, 513);
}

#[test]
fn the_window_makes_no_access_that_its_registers_do_not_name() {
    let mut machine = up::<1>();
    let at = structure_of(&mut machine, 5);
    let untouched = machine.device.device().clone();
    let mut window = Window { machine: &mut machine, at };
    let status = field::DEVICE_STATUS;
    let bad = [(0, status, 0), (0, status, 3), (0, status, 8), (1, status, 1), (255, status, 1)];
    for (bar, offset, bytes) in
        bad.into_iter().chain([(0, structure::DEVICE + WRITEBACK - 1, 2), (0, u64::from(u32::MAX), 1)])
    {
        window.look(bar, offset, bytes);
        window.machine.configure(at + 16, Width::Dword, 0);
        window.machine.configuration(at + 16, Width::Dword);
        assert_eq!(window.machine.device.device(), &untouched, "{bar} {offset:#x} {bytes}");
    }
    // The MSI-X table is no structure of VIRTIO's.
    let _ = window.set(structure::MSIX_TABLE + 8, 4, 0x55);
    assert_eq!(window.machine.read(structure::MSIX_TABLE + 8, Width::Dword), 0);
    // Reads fill as many bytes as were asked for, and only the data's registers act.
    window.look(0, structure::DEVICE, 1);
    window.machine.configure(at + 16, Width::Dword, 0xaabb_ccdd);
    assert_eq!(window.machine.configuration(at + 16, Width::Dword), 0xaabb_cc00 | SECTORS);
    window.look(0, status, 1);
    for register in [at, at + 1, at + 2, at + 3, at + 5, at + 6, at + 7, at + 20] {
        window.machine.configure(register, Width::Byte, 0);
    }
    assert_eq!(window.get(status, 1), 15);
}
