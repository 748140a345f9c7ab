//! The device behind virtio-pci: what is of the transport, through configuration space and BAR.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(clippy::arithmetic_side_effects, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod interrupts;
mod registers;
mod resets;
mod structures;
mod window;

use blk_core::bus::Width;
use blk_core::storage::Cache;
use common::{Bench as _, Disk, Machine, OnPci, modern};
use virtio_blk_model::front::mmio::register;
use virtio_blk_model::front::pci::{common as field, structure};

pub(crate) type PciMachine<const Q: usize = 1> = Machine<Q, OnPci<Q>>;

/// COMMAND: memory, bus mastering.
pub(crate) const MEMORY: u64 = 2;
pub(crate) const BUS_MASTER: u64 = 4;
pub(crate) const WRITEBACK: u64 = 32;

pub(crate) fn off<const Q: usize>() -> PciMachine<Q> {
    let mut machine = PciMachine::on_pci((0..Q).map(|_| Disk::new(Cache::WriteBack)).collect());
    command(&mut machine, MEMORY | BUS_MASTER);
    machine
}

/// A device that is up and uses its pin.
pub(crate) fn up<const Q: usize>() -> PciMachine<Q> {
    let mut machine = off();
    machine.bring_up(modern());
    machine
}

/// A device that is up and uses MSI-X: `vectors` are the configuration's and the queues'.
pub(crate) fn up_with_messages<const Q: usize>(config: u16, queues: [u16; Q]) -> PciMachine<Q> {
    let mut machine = off();
    let at = capability(&mut machine, 0x11, |_, _| true).unwrap();
    machine.configure(at + 2, Width::Word, 1 << 15);
    for vector in 0..Q as u64 + 1 {
        unmask(&mut machine, vector, true);
    }
    machine.bring_up(modern());
    machine.poke(field::CONFIG_MSIX_VECTOR, Width::Word, config.into());
    for (queue, vector) in (0..).zip(queues) {
        machine.set(register::QUEUE_SEL, queue);
        machine.poke(field::QUEUE_MSIX_VECTOR, Width::Word, vector.into());
        assert_eq!(machine.read(field::QUEUE_MSIX_VECTOR, Width::Word), vector.into());
    }
    machine
}

pub(crate) fn unmask<const Q: usize>(machine: &mut PciMachine<Q>, vector: u64, on: bool) {
    machine.poke(structure::MSIX_TABLE + vector * 16 + 12, Width::Dword, u64::from(!on));
}

pub(crate) fn command<const Q: usize>(machine: &mut PciMachine<Q>, bits: u64) {
    machine.configure(4, Width::Word, bits);
}

/// The first capability with `id` that is `wanted`.
pub(crate) fn capability<const Q: usize>(
    machine: &mut PciMachine<Q>,
    id: u64,
    wanted: impl Fn(&mut PciMachine<Q>, u64) -> bool,
) -> Option<u64> {
    assert_ne!(machine.configuration(6, Width::Word) & 1 << 4, 0, "there is a list");
    let mut at = machine.configuration(0x34, Width::Byte);
    while at != 0 {
        if machine.configuration(at, Width::Byte) == id && wanted(machine, at) {
            return Some(at);
        }
        at = machine.configuration(at + 1, Width::Byte);
    }
    None
}

/// A structure's capability, as Linux finds it (virtio_pci_modern_dev.c, `virtio_pci_find_capability`).
pub(crate) fn structure_of(machine: &mut PciMachine, kind: u64) -> u64 {
    let found = capability(machine, 9, |machine, at| {
        machine.configuration(at + 3, Width::Byte) == kind && machine.configuration(at + 4, Width::Byte) <= 5
    });
    found.unwrap()
}
