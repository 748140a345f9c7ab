//! Resets with requests in flight, and bus mastering, without which only they go on.

use blk_core::bus::{Device as _, Width, WriteStatus};
use blk_core::op::Op;
use blk_core::units::Extent;
use virtio_blk_model::front::mmio::register;
use virtio_blk_model::front::pci::{NO_VECTOR, common as field, structure};
use virtio_blk_model::wire::Features;

use crate::common::*;
use crate::{BUS_MASTER, MEMORY, WRITEBACK, command, off, up, up_with_messages};

#[test]
fn a_reset_reads_0_only_when_nothing_can_land_any_more() {
    let mut machine = up_with_messages::<1>(0, [1]);
    machine.disks[0].eager = false;
    machine.put(DATA, &[0x55; 512]);
    machine.send(OUT, 4, &[(DATA, 512, 0)]);
    machine.send(OUT, 5, &[(DATA, 512, 0)]);
    machine.poll();
    machine.set(register::QUEUE_SEL, 0);
    assert_eq!(machine.try_set(register::STATUS, 0), WriteStatus::Pending);
    assert_ne!(machine.get(register::STATUS), 0);
    machine.set(register::STATUS, 1);
    let memory = machine.memory;
    machine.disks[0].complete(&memory);
    assert!(machine.poll().pending_write);
    assert_ne!(machine.get(register::STATUS), 0, "one is still in flight");
    machine.disks[0].complete(&memory);
    assert!(!machine.poll().pending_write);
    assert_eq!(machine.get(register::STATUS), 0);
    assert!(machine.reap(0).is_none() && machine.messages.is_empty(), "no ring was touched, nobody told");
    for vector in [field::CONFIG_MSIX_VECTOR, field::QUEUE_MSIX_VECTOR] {
        assert_eq!(machine.read(vector, Width::Word), NO_VECTOR.into());
    }
    assert_eq!(machine.read(field::QUEUE_ENABLE, Width::Word), 0);
    assert_eq!(machine.read(field::QUEUE_SIZE, Width::Word), RING.into());
    assert_eq!(machine.read(field::QUEUE_DESC, Width::Qword), 0);
    machine.disks[0].eager = true;
    machine.bring_up(modern());
    assert_eq!(machine.request(IN, 4, &[(DATA, 512, WRITE)]), (OK, 513));
}

#[test]
fn the_buses_reset_waits_as_well_although_it_takes_bus_mastering_away() {
    let mut machine = up::<1>();
    machine.disks[0].eager = false;
    machine.send(OUT, 4, &[(DATA, 512, 0)]);
    machine.poll();
    assert!(machine.device.reset(&machine.memory, &mut machine.disks[..]).pending_write);
    assert_eq!(machine.configuration(4, Width::Word), 0);
    assert!(machine.poll().pending_write);
    let memory = machine.memory;
    machine.disks[0].complete(&memory);
    assert!(!machine.poll().pending_write);
    command(&mut machine, MEMORY);
    assert_eq!(machine.get(register::STATUS), 0);
}

#[test]
fn a_queue_reset_waits_for_its_own_requests_only() {
    let mut machine = up_with_messages::<2>(0, [1, 2]);
    machine.disks[0].eager = false;
    machine.send(IN, 1, &[(DATA, 512, WRITE)]);
    machine.poll();
    machine.set(register::QUEUE_SEL, 0);
    assert_eq!(machine.try_set(register::QUEUE_RESET, 1), WriteStatus::Pending);
    assert_eq!((machine.get(register::QUEUE_RESET), machine.get(register::QUEUE_READY)), (1, 1));
    machine.header(HEADER + 0x40, IN, 2);
    machine.offer(1, &[(HEADER + 0x40, 16, 0), (DATA + 512, 512, WRITE), (STATUS + 1, 1, WRITE)]);
    machine.poll();
    assert!(machine.reap(1).is_some(), "the other goes on");
    let memory = machine.memory;
    machine.disks[0].complete(&memory);
    machine.poll();
    machine.set(register::QUEUE_SEL, 0);
    assert_eq!((machine.get(register::QUEUE_RESET), machine.get(register::QUEUE_READY)), (0, 0));
    assert_eq!(machine.read(field::QUEUE_MSIX_VECTOR, Width::Word), NO_VECTOR.into());
    assert!(machine.reap(0).is_none(), "its ring was left alone");
    machine.disks[0].eager = true;
    machine.set_up_queue(0, false);
    assert_eq!((machine.get(register::QUEUE_RESET), machine.get(register::QUEUE_READY)), (0, 1));
    assert_eq!(machine.request(IN, 3, &[(DATA, 512, WRITE)]), (OK, 513));
}

#[test]
fn a_queue_is_reset_only_where_that_was_negotiated_and_stopped_by_nothing_else() {
    let mut machine = off::<1>();
    machine.bring_up(modern().difference(Features::RING_RESET));
    machine.set(register::QUEUE_SEL, 0);
    for value in [1, 0] {
        machine.set(register::QUEUE_RESET, value);
        machine.set(register::QUEUE_READY, value);
        machine.poke(field::QUEUE_ENABLE, Width::Word, 0);
    }
    assert_eq!(machine.request(IN, 3, &[(DATA, 512, WRITE)]), (OK, 513));
}

#[test]
fn without_bus_mastering_no_request_is_taken_and_no_ring_touched() {
    let mut machine = up::<1>();
    machine.disks[0].eager = false;
    machine.send(IN, 1, &[(DATA, 512, WRITE)]);
    machine.poll();
    command(&mut machine, MEMORY);
    machine.header(HEADER + 0x40, IN, 2);
    machine.offer(0, &[(HEADER + 0x40, 16, 0), (DATA + 512, 512, WRITE), (STATUS + 1, 1, WRITE)]);
    let memory = machine.memory;
    machine.disks[0].complete(&memory);
    for _ in 0..3 {
        machine.poll();
    }
    assert_eq!(machine.log().len(), 1, "the second is not taken");
    assert!(machine.reap(0).is_none() && machine.fetch(STATUS, 1) == [0xff] && !machine.line);
    // No vCPU is held for what another one has to allow.
    assert_eq!(machine.write(structure::DEVICE + WRITEBACK, Width::Byte, 0), WriteStatus::Done);
    assert!(!machine.poll().pending_write);
    assert_eq!(machine.config(WRITEBACK, Width::Byte), 1, "not yet");

    command(&mut machine, MEMORY | BUS_MASTER);
    machine.disks[0].eager = true;
    machine.poll();
    assert!(machine.line && machine.reap(0).is_some() && machine.reap(0).is_some());
    assert_eq!(machine.config(WRITEBACK, Width::Byte), 0);
    let read = |sector| Op::Read { extent: Extent::new(sector, 1) };
    assert_eq!(machine.log(), [Op::Flush, read(2)], "the switch had come before the second request");
}

#[test]
fn a_reset_goes_on_without_bus_mastering() {
    let mut machine = up::<1>();
    machine.disks[0].eager = false;
    machine.send(OUT, 1, &[(DATA, 512, 0)]);
    machine.poll();
    command(&mut machine, MEMORY);
    assert_eq!(machine.try_set(register::STATUS, 0), WriteStatus::Pending);
    assert!(machine.poll().pending_write);
    let memory = machine.memory;
    machine.disks[0].complete(&memory);
    assert!(!machine.poll().pending_write);
    assert_eq!(machine.get(register::STATUS), 0);
    assert!(machine.reap(0).is_none());
}

#[test]
fn a_device_is_saved_restored_and_sent() {
    fn sent<T: Send>(_: &T) {}
    let mut machine = up_with_messages::<2>(0, [1, 2]);
    machine.disks[0].busy = true;
    let head = machine.send(IN, 2, &[(DATA, 512, WRITE)]);
    machine.poll();
    sent(&machine.device);
    let bytes = postcard::to_stdvec(&machine.device).unwrap();
    let restored: OnPci<2> = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(restored, machine.device);
    machine.device = restored;
    machine.disks[0].busy = false;
    machine.poll();
    assert_eq!((machine.reap(0), &machine.messages[..]), (Some((head, 513)), &[1][..]));
}
