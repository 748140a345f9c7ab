//! Rings through the device: what breaks a queue, what a reset leaves, what an interrupt is for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(clippy::arithmetic_side_effects, reason = "tests")]

mod common;

use blk_core::bus::{Device, WriteStatus};
use blk_core::memory::GuestMemory;
use blk_core::storage::Cache;
use blk_core::units::GuestAddr;
use blk_core::virtq::QueueError;
use common::*;
use virtio_blk_model::device::{Config, Interface};
use virtio_blk_model::front::mmio::{INTERRUPT_CONFIG, INTERRUPT_USED, register};
use virtio_blk_model::wire::Features;

const NEEDS_RESET: u32 = 64;

/// Asserts that the queue is broken for `error`, that the driver is told, and that a reset mends it.
fn assert_broken(machine: &mut Machine, error: QueueError) {
    machine.poll();
    assert_eq!(machine.device.device().queue(0).unwrap().ring().error(), Some(error));
    assert_eq!(machine.get(register::STATUS), 15 | NEEDS_RESET);
    assert_eq!(machine.get(register::INTERRUPT_STATUS), INTERRUPT_CONFIG);
    assert!(machine.line);
    machine.set(register::INTERRUPT_ACK, INTERRUPT_CONFIG);
    assert!(!machine.line);
    machine.poll();
    assert!(!machine.line, "told once");
    assert_eq!(machine.try_set(register::STATUS, 0), WriteStatus::Done);
    machine.bring_up(modern());
    assert_eq!(machine.request(IN, 1, &[(DATA, 512, WRITE)]), (OK, 513));
}

// host-std/tests/defects.md, 20.
#[test]
fn a_descriptor_loop_breaks_the_queue_until_reset() {
    let mut machine = machine();
    let ring = Machine::<1>::ring(0);
    machine.descriptor(ring, 0, (HEADER, 16, NEXT), 1);
    machine.descriptor(ring, 1, (HEADER, 16, NEXT), 0);
    machine.offer_head(0, 0);
    assert_broken(&mut machine, QueueError::TooLong);
}

// CVE-2016-6490.
#[test]
fn a_loop_of_zero_length_descriptors_breaks_the_queue() {
    let mut machine = machine();
    machine.descriptor(Machine::<1>::ring(0), 3, (HEADER, 0, NEXT), 3);
    machine.offer_head(0, 3);
    assert_broken(&mut machine, QueueError::TooLong);
}

// host-std/tests/defects.md, 20.
#[test]
fn an_indirect_table_in_an_indirect_table_breaks_the_queue() {
    let mut machine = machine();
    machine.descriptor(TABLE, 0, (TABLE, 16, INDIRECT), 0);
    machine.offer(0, &[(TABLE, 16, INDIRECT)]);
    assert_broken(&mut machine, QueueError::IndirectNested);
}

// host-std/tests/defects.md, 20.
#[test]
fn an_address_whose_end_wraps_breaks_the_queue() {
    let mut machine = machine();
    machine.offer(0, &[(u64::MAX - 7, 16, 0), (STATUS, 1, WRITE)]);
    assert_broken(&mut machine, QueueError::Wraps);
}

// host-std/tests/defects.md, 20: overlapping buffers.
#[test]
fn buffers_over_one_another_the_header_the_status_or_the_ring_hurt_their_driver_only() {
    let mut machine = machine();
    assert_eq!(machine.request(IN, 2, &[(DATA, 512, WRITE), (DATA, 512, WRITE)]), (OK, 1025));
    assert_eq!(machine.fetch(DATA, 512), [3; 512]);
    // Over the header, which was copied before, and over the status byte, which comes last.
    assert_eq!(machine.request(IN, 2, &[(HEADER, 512, WRITE)]), (OK, 513));
    assert_eq!((machine.fetch(HEADER, 16), machine.fetch(STATUS, 2)), (vec![2; 16], vec![OK, 2]));
    // Over the ring: its index is then one that cannot be.
    machine.set(register::INTERRUPT_ACK, INTERRUPT_USED);
    machine.disks[0].data[512 * 5..512 * 6].fill(0xff);
    machine.send(IN, 5, &[(Machine::<1>::ring(0), 512, WRITE)]);
    assert_broken(&mut machine, QueueError::AvailableIndex);
}

// host-std/tests/defects.md, 5: an empty write chain.
#[test]
fn a_chain_without_room_for_a_status_breaks_the_queue() {
    let mut machine = machine();
    machine.header(HEADER, OUT, 0);
    machine.offer(0, &[(HEADER, 16, 0), (DATA, 512, 0)]);
    assert_broken(&mut machine, QueueError::Unanswerable);
    assert_eq!(machine.log().len(), 1, "the read that came after the reset");
}

#[test]
fn a_status_that_is_not_memory_breaks_the_queue() {
    let mut machine = machine();
    machine.header(HEADER, IN, 0);
    machine.offer(0, &[(HEADER, 16, 0), (DATA, 512, WRITE), (1 << 40, 1, WRITE)]);
    assert_broken(&mut machine, QueueError::Memory);
}

// CVE-2016-5403.
#[test]
fn more_in_flight_than_the_ring_holds_breaks_the_queue() {
    let mut machine = machine();
    machine.disks[0].eager = false;
    machine.header(HEADER, IN, 0);
    // One chain, offered again and again: five are in flight, and then as many more as the ring has entries.
    let head = machine.offer(0, &[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    for _ in 1..5 {
        machine.offer_head(0, head);
    }
    machine.poll();
    assert_eq!(machine.disks[0].in_flight.len(), 5);
    for _ in 0..RING {
        machine.offer_head(0, head);
    }
    let memory = machine.memory;
    machine.disks[0].eager = true;
    machine.poll();
    assert_eq!(machine.disks[0].in_flight.len(), 5, "nothing more is taken");
    while !machine.disks[0].in_flight.is_empty() {
        machine.disks[0].complete(&memory);
    }
    assert_eq!(machine.reap(0), None);
    assert_broken(&mut machine, QueueError::AvailableIndex);
}

#[test]
fn a_ring_size_that_was_not_offered_breaks_the_queue() {
    for size in [0, 3, 32, 0x1_0010] {
        let mut machine = Machine::<1>::off(Config::default(), vec![Disk::new(Cache::WriteBack)]);
        machine.set(register::STATUS, 3);
        machine.accept(Features::VERSION_1.bits());
        machine.set(register::STATUS, 11);
        machine.set(register::QUEUE_SIZE, size);
        machine.set(register::QUEUE_READY, 1);
        machine.set(register::STATUS, 15);
        machine.poll();
        assert_eq!(machine.get(register::STATUS), 15 | NEEDS_RESET, "{size}");
    }
}

// host-std/tests/defects.md, 18 (CVE-2023-5088).
#[test]
fn a_reset_waits_for_what_is_in_flight_and_touches_no_queue_afterwards() {
    let mut machine = machine();
    machine.disks[0].eager = false;
    machine.send(OUT, 5, &[(DATA, 512, 0)]);
    machine.poll();
    assert_eq!(machine.try_set(register::STATUS, 0), WriteStatus::Pending);
    assert_ne!(machine.get(register::STATUS), 0);
    assert!(machine.poll().pending_write);
    assert_ne!(machine.get(register::STATUS), 0);
    let before = machine.fetch(0, 0x9000);
    let memory = machine.memory;
    machine.disks[0].complete(&memory);
    assert!(!machine.poll().pending_write);
    assert_eq!(machine.get(register::STATUS), 0);
    assert_eq!(machine.fetch(0, 0x9000), before, "neither ring nor status byte");
    assert!(!machine.line);
    machine.disks[0].eager = true;
    machine.bring_up(modern());
    assert_eq!(machine.request(IN, 0, &[(DATA, 512, WRITE)]), (OK, 513));
}

#[test]
fn the_machines_reset_line_waits_as_well() {
    let mut machine = machine();
    machine.disks[0].eager = false;
    machine.send(OUT, 5, &[(DATA, 512, 0)]);
    machine.poll();
    assert!(machine.device.reset(&machine.memory, &mut machine.disks[..]).pending_write);
    let memory = machine.memory;
    machine.disks[0].complete(&memory);
    assert!(!machine.poll().pending_write);
    assert_eq!(machine.get(register::STATUS), 0);
}

// host-std/tests/defects.md, 19.
#[test]
fn after_a_reset_the_ring_begins_anew() {
    let mut machine = machine();
    for sector in 0..5 {
        assert_eq!(machine.request(IN, sector, &[(DATA, 512, WRITE)]), (OK, 513));
    }
    assert_eq!(machine.try_set(register::STATUS, 0), WriteStatus::Done);
    assert_eq!(machine.get(register::QUEUE_READY), 0);
    machine.poll();
    machine.bring_up(modern());
    // The ring holds old entries no more; only the new one is done.
    assert_eq!(machine.request(IN, 9, &[(DATA, 512, WRITE)]), (OK, 513));
    assert_eq!(machine.fetch(DATA, 1), [9]);
}

// host-std/tests/defects.md, 19: nothing is taken unless the driver is ready.
#[test]
fn a_queue_is_left_alone_before_driver_ok() {
    let mut machine = Machine::<1>::off(Config::default(), vec![Disk::new(Cache::WriteBack)]);
    machine.set(register::STATUS, 3);
    machine.accept(Features::VERSION_1.bits());
    machine.set(register::STATUS, 11);
    machine.set_up_queue(0, false);
    machine.send(IN, 0, &[(DATA, 512, WRITE)]);
    machine.poll();
    assert_eq!((machine.reap(0), machine.log().len()), (None, 0));
    machine.set(register::STATUS, 15);
    machine.poll();
    assert!(machine.reap(0).is_some());
}

/// 3.1.1: legacy drivers use their queues before they set DRIVER_OK.
#[test]
fn a_legacy_queue_works_before_driver_ok() {
    let config = Config { interface: Interface::Legacy { barrier: false }, ..Config::default() };
    let mut machine = Machine::<1>::off(config, vec![Disk::new(Cache::WriteBack)]);
    assert_eq!(machine.get(register::VERSION), 1);
    machine.set(register::STATUS, 3);
    machine.set_up_queue(0, true);
    assert_eq!(machine.get(register::QUEUE_PFN), 1);
    assert_eq!(machine.request(IN, 4, &[(DATA, 512, WRITE)]), (OK, 513));
    assert_eq!(machine.try_set(register::QUEUE_PFN, 0), WriteStatus::Done);
    assert_eq!(machine.get(register::QUEUE_PFN), 0);
}

/// 4.2.2.2 and 2.6.1: a queue that is stopped has nothing in flight when the driver reads so.
#[test]
fn stopping_one_queue_waits_for_its_requests() {
    for register in [register::QUEUE_READY, register::QUEUE_RESET] {
        let mut machine = machine();
        machine.disks[0].eager = false;
        machine.send(OUT, 5, &[(DATA, 512, 0)]);
        machine.poll();
        let value = u32::from(register == register::QUEUE_RESET);
        assert_eq!(machine.try_set(register, value), WriteStatus::Pending);
        assert_eq!(machine.get(register), 1);
        let memory = machine.memory;
        machine.disks[0].complete(&memory);
        assert!(!machine.poll().pending_write);
        assert_eq!(machine.get(register), 0);
        assert_eq!(machine.reap(0), None);
        machine.disks[0].eager = true;
        machine.set_up_queue(0, false);
        assert_eq!(machine.request(IN, 5, &[(DATA, 512, WRITE)]), (OK, 513));
    }
}

#[test]
fn a_busy_storage_leaves_the_request_in_the_ring() {
    let mut machine = machine();
    machine.disks[0].busy = true;
    let head = machine.send(IN, 6, &[(DATA, 512, WRITE)]);
    machine.poll();
    assert_eq!(machine.reap(0), None);
    assert_eq!(machine.device.device().queue(0).unwrap().in_flight(), 0);
    machine.disks[0].busy = false;
    machine.poll();
    assert_eq!(machine.reap(0), Some((head, 513)));
}

#[test]
fn requests_beyond_the_slots_wait_and_each_completes_once() {
    let mut machine = machine();
    machine.disks[0].eager = false;
    machine.header(HEADER, IN, 0);
    let mut heads = Vec::new();
    // Indirect, so that sixteen fit: one table for all.
    machine.descriptor(TABLE, 0, (HEADER, 16, NEXT), 1);
    machine.descriptor(TABLE, 1, (DATA, 512, NEXT | WRITE), 2);
    machine.descriptor(TABLE, 2, (STATUS, 1, WRITE), 0);
    for _ in 0..RING {
        heads.push(machine.offer(0, &[(TABLE, 48, INDIRECT)]));
    }
    let memory = machine.memory;
    let mut back = Vec::new();
    loop {
        machine.poll();
        while let Some((head, written)) = machine.reap(0) {
            assert_eq!(written, 513);
            back.push(head);
        }
        assert!(machine.disks[0].in_flight.len() <= 8);
        if machine.disks[0].in_flight.is_empty() {
            break;
        }
        machine.disks[0].complete(&memory);
    }
    assert_eq!(back, heads);
}

#[test]
fn one_interrupt_tells_of_a_whole_drain() {
    let features = modern() | Features::EVENT_IDX;
    let mut machine = Machine::<1>::new(Config::default(), vec![Disk::new(Cache::WriteBack)], features);
    let ring = Machine::<1>::ring(0);
    let used_event = GuestAddr(ring + 0x100 + 4 + 2 * u64::from(RING));
    let available_event = GuestAddr(ring + 0x140 + 4 + 8 * u64::from(RING));
    for _ in 0..4 {
        machine.send(IN, 0, &[(DATA, 512, WRITE)]);
    }
    machine.poll();
    assert_eq!(machine.memory.load_u16_acquire(available_event), Ok(4));
    assert_eq!(machine.get(register::INTERRUPT_STATUS), INTERRUPT_USED);
    machine.set(register::INTERRUPT_ACK, INTERRUPT_USED);
    assert!(!machine.line);
    // The driver wants to hear of the sixth.
    machine.memory.store_u16_release(used_event, 5).unwrap();
    machine.send(IN, 0, &[(DATA, 512, WRITE)]);
    machine.poll();
    assert!(!machine.line);
    machine.send(IN, 0, &[(DATA, 512, WRITE)]);
    machine.poll();
    assert!(machine.line);
}

#[test]
fn each_queue_works_on_its_own_handle() {
    let disks = vec![Disk::new(Cache::WriteBack), Disk::new(Cache::WriteBack)];
    let mut machine = Machine::<2>::new(Config::default(), disks, modern());
    assert!(machine.offered().contains(Features::MQ));
    assert_eq!(machine.config(34, blk_core::bus::Width::Word), 2);
    machine.header(HEADER, IN, 0);
    machine.offer(1, &[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    machine.poll();
    assert_eq!((machine.disks[0].log.len(), machine.disks[1].log.len()), (0, 1));
    assert!(machine.reap(1).is_some());
    machine.set(register::QUEUE_SEL, 2);
    assert_eq!(machine.get(register::QUEUE_SIZE_MAX), 0);
}
