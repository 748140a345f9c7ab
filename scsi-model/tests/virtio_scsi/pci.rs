//! The controller behind virtio-pci. What is of the transport alone is tested with virtio-blk.

use blk_core::bus::{Device as _, Width, WriteStatus};
use blk_core::virtio::mmio::register;
use blk_core::virtio::pci::{common, structure};
use scsi_model::front::virtio_scsi::REQUEST;

use crate::machine::*;
use crate::rig::BLOCK;

/// Where MSI-X's Message Control is: MSI-X is the first capability.
const MSIX_CONTROL: u64 = 0x42;

/// A controller that is up, with a unit that has been heard.
fn up() -> Machine<OnPci> {
    let mut machine = Machine::on_pci(&[at(0, 0)]);
    machine.bring_up(features());
    assert_eq!(machine.command(lun(0, 0), &TEST_UNIT_READY, &[], 0).key(), (6, 0x2900));
    machine
}

/// The vectors whose messages came of a poll.
fn messages(machine: &mut Machine<OnPci>) -> u32 {
    machine.device.poll(&machine.memory, &mut machine.disks[..]).irq.level >> 1
}

#[test]
fn the_function_is_a_modern_scsi_host_with_a_vector_for_each_queue() {
    fn sent<T: Send>(_: &T) {}
    let machine = up();
    sent(&machine.device);
    let config = machine.device.config();
    assert_eq!((config.dword(0), config.dword(8)), (0x1048_1af4, 0x0100_0001));
    assert_eq!(config.dword(0x40) >> 16 & 0x7ff, 2 + QUEUES as u32, "one less than there are");
}

#[test]
fn a_unit_is_read_written_and_managed() {
    let mut machine = up();
    assert!(machine.command(lun(0, 0), &write10(3, 1), &[7; BLOCK], 0).is_good());
    assert_eq!(machine.data_in(lun(0, 0), &read10(3, 1), BLOCK), [7; BLOCK]);
    let function = machine.manage(5, lun(0, 0), 0);
    assert_eq!(machine.managed(function), Some(0), "LOGICAL UNIT RESET is complete");
    assert_eq!(machine.get(register::INTERRUPT_STATUS), 1);
}

#[test]
fn queues_and_events_have_their_vectors() {
    let mut machine = up();
    machine.configure(MSIX_CONTROL, 1 << 15);
    for queue in 0..4_u32 {
        let _ = machine.write(structure::MSIX_TABLE + 12 + 16 * u64::from(queue + 1), Width::Dword, 0);
        machine.set(register::QUEUE_SEL, queue);
        let _ = machine.write(common::QUEUE_MSIX_VECTOR, Width::Word, u64::from(queue + 1));
    }
    machine.send(lun(0, 0), &TEST_UNIT_READY, &[], 0);
    assert_eq!(messages(&mut machine), 1 << 3);
    machine.send_as(REQUEST + 1, lun(0, 0), (9, 0), &TEST_UNIT_READY, &[], 0);
    assert_eq!(messages(&mut machine), 1 << 4);
    machine.manage(5, lun(0, 0), 0);
    assert_eq!(messages(&mut machine), 1 << 1);
    machine.lend(16);
    machine.device.device_mut().device_mut().controller_mut().remove(0);
    assert_eq!(messages(&mut machine), 1 << 2);
}

#[test]
fn a_reset_with_a_write_in_flight_waits_for_it() {
    let mut machine = up();
    machine.disks[0].held = true;
    machine.send(lun(0, 0), &write10(3, 1), &[1; BLOCK], 0);
    machine.poll();
    assert_eq!(machine.try_set(register::STATUS, 0), WriteStatus::Pending);
    // Bus mastering may go meanwhile.
    machine.configure(4, 2);
    assert!(machine.poll().pending_write);
    assert_ne!(machine.get(register::STATUS), 0);
    machine.release(0);
    assert!(!machine.poll().pending_write);
    assert_eq!(machine.get(register::STATUS), 0);
    assert!(machine.reap(REQUEST).is_none(), "no ring was touched");
}

#[test]
fn without_bus_mastering_nothing_is_taken() {
    let mut machine = up();
    machine.configure(4, 2);
    let (sent, _) = machine.send(lun(0, 0), &read10(0, 1), &[], BLOCK);
    machine.poll();
    assert_eq!(machine.reap(REQUEST), None);
    machine.configure(4, 6);
    assert!(machine.expect(sent).is_good());
}
