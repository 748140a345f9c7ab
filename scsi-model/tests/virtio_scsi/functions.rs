//! Task management, resets, and stopping a ring: nothing lands after they are complete.

use blk_core::bus::WriteStatus;
use blk_core::virtio::mmio::register;

use crate::machine::*;
use crate::rig::BLOCK;
use scsi_model::front::virtio_scsi::REQUEST;

const ABORT_TASK: u32 = 0;
const ABORT_TASK_SET: u32 = 1;
const CLEAR_ACA: u32 = 2;
const CLEAR_TASK_SET: u32 = 3;
const NEXUS_RESET: u32 = 4;
const UNIT_RESET: u32 = 5;
const QUERY_TASK: u32 = 6;
const QUERY_TASK_SET: u32 = 7;

/// A machine with two units in target 0 and one in target 1, and a write in flight at each.
fn busy() -> (Machine, [(Sent, u64); 3]) {
    let mut machine = Machine::new(&[at(0, 0), at(0, 1), at(1, 0)]);
    machine.disks.iter_mut().for_each(|disk| disk.held = true);
    let sent =
        [lun(0, 0), lun(0, 1), lun(1, 0)].map(|lun| machine.send(lun, &write10(9, 1), &[0x99; BLOCK], 0));
    machine.poll();
    assert!(machine.disks.iter().all(|disk| disk.waiting.len() == 1));
    (machine, sent)
}

#[test]
fn an_abort_is_complete_when_what_it_aborts_has_landed() {
    for (subtype, response) in
        [(ABORT_TASK, ABORTED), (ABORT_TASK_SET, ABORTED), (CLEAR_TASK_SET, ABORTED), (UNIT_RESET, RESET)]
    {
        let (mut machine, [(sent, id), ..]) = busy();
        let function = machine.manage(subtype, lun(0, 0), id);
        assert_eq!(machine.managed(function), None, "it waits for the disk");
        assert_eq!(machine.reap(REQUEST), None);
        machine.release(0);
        assert_eq!(machine.managed(function), Some(OK), "FUNCTION COMPLETE");
        let (head, len) = machine.reap(REQUEST).unwrap();
        assert_eq!((head, machine.answer(sent, len).response, len), (sent.head, response, 12));
        assert_eq!(machine.reap(REQUEST), None, "the other units are not concerned");
        assert!(machine.disks[0].waiting.is_empty(), "nothing lands later");
        let next = machine.command(lun(0, 0), &TEST_UNIT_READY, &[], 0);
        if subtype == UNIT_RESET {
            assert_eq!(next.key(), (6, 0x2903), "BUS DEVICE RESET FUNCTION OCCURRED");
        } else {
            assert!(next.is_good());
        }
    }
}

#[test]
fn a_task_that_waits_is_aborted_at_once_and_alone() {
    let (mut machine, [(first, _), ..]) = busy();
    let ordered = machine.send_as(REQUEST, lun(0, 0), (77, 1), &write10(1, 1), &[1; BLOCK], 0);
    let younger = machine.send_as(REQUEST, lun(0, 0), (78, 0), &write10(2, 1), &[2; BLOCK], 0);
    let function = machine.manage(ABORT_TASK, lun(0, 0), 77);
    assert_eq!(machine.managed(function), Some(OK));
    assert_eq!(machine.heads(REQUEST), [ordered.head]);
    assert_eq!(machine.fetch(ordered.response + 11, 1), [ABORTED]);
    machine.release(0);
    machine.poll();
    machine.disks[0].release(&machine.memory, 0);
    machine.poll();
    assert_eq!(machine.heads(REQUEST), [first.head, younger.head]);
}

/// The function and what it is about are in two rings: it finds what was made available before it.
#[test]
fn an_abort_finds_a_command_that_is_still_in_its_ring() {
    let mut machine = Machine::new(&[at(0, 0)]);
    machine.disks[0].held = true;
    let (sent, id) = machine.send(lun(0, 0), &write10(3, 1), &[1; BLOCK], 0);
    let function = machine.manage(ABORT_TASK, lun(0, 0), id);
    assert_eq!(machine.managed(function), Some(OK), "it had not started");
    let (_, len) = machine.reap(REQUEST).unwrap();
    assert_eq!(machine.answer(sent, len).response, ABORTED);
    assert!(machine.disks[0].log.iter().all(|op| !op.mutates()));
}

#[test]
fn queries_tell_whether_a_task_is_there() {
    let (mut machine, [(_, id), ..]) = busy();
    let ask = |machine: &mut Machine, subtype, lun, id| {
        let function = machine.manage(subtype, lun, id);
        machine.managed(function).expect("a query does not wait")
    };
    assert_eq!(ask(&mut machine, QUERY_TASK, lun(0, 0), id), SUCCEEDED);
    assert_eq!(ask(&mut machine, QUERY_TASK, lun(0, 0), id + 1), OK, "of another unit");
    assert_eq!(ask(&mut machine, QUERY_TASK_SET, lun(0, 0), 0), SUCCEEDED);
    assert_eq!(ask(&mut machine, ABORT_TASK, lun(0, 0), 0xdead), OK, "not there: complete");
    machine.release(0);
    machine.poll();
    assert_eq!(ask(&mut machine, QUERY_TASK_SET, lun(0, 0), 0), OK);
    assert_eq!(ask(&mut machine, CLEAR_ACA, lun(0, 0), 0), REJECTED);
    assert_eq!(ask(&mut machine, 8, lun(0, 0), 0), REJECTED);
    for (subtype, lun, response) in [
        (QUERY_TASK_SET, lun(0, 7), INCORRECT_LUN),
        (UNIT_RESET, lun(9, 0), BAD_TARGET),
        (NEXUS_RESET, lun(9, 0), BAD_TARGET),
        (ABORT_TASK_SET, [0; 8], BAD_TARGET),
        (ABORT_TASK_SET, [0xc1, 1, 0, 0, 0, 0, 0, 0], INCORRECT_LUN),
    ] {
        assert_eq!(ask(&mut machine, subtype, lun, 0), response);
    }
}

/// SAM-5, I_T nexus loss: the tasks of the target's units end, and the units tell; their modes stay.
#[test]
fn a_nexus_reset_ends_the_tasks_of_every_unit_of_its_target() {
    let (mut machine, [(zero, _), (one, _), (other, _)]) = busy();
    let function = machine.manage(NEXUS_RESET, lun(0, 99), 0);
    assert_eq!(machine.managed(function), None);
    machine.release(1);
    assert_eq!(machine.managed(function), None, "the other unit is not done");
    machine.release(0);
    assert_eq!(machine.managed(function), Some(OK));
    assert_eq!(machine.heads(REQUEST), [one.head, zero.head]);
    for sent in [zero, one] {
        assert_eq!(machine.fetch(sent.response + 11, 1), [RESET]);
    }
    machine.disks.iter_mut().for_each(|disk| disk.held = false);
    for unit in [lun(0, 0), lun(0, 1)] {
        assert_eq!(machine.command(unit, &TEST_UNIT_READY, &[], 0).key(), (6, 0x2907));
        assert!(machine.command(unit, &TEST_UNIT_READY, &[], 0).is_good());
    }
    machine.release(2);
    machine.poll();
    assert_eq!(machine.heads(REQUEST), [other.head]);
    assert_eq!(machine.fetch(other.response + 11, 1), [OK]);
}

/// host-std/tests/defects.md, 18, CVE-2023-5088: what a reset takes away does not land on top of what comes after it.
#[test]
fn a_unit_reset_waits_and_what_comes_after_it_is_newer() {
    let (mut machine, [(old, _), ..]) = busy();
    let function = machine.manage(UNIT_RESET, lun(0, 0), 0);
    machine.poll();
    let (ready, _) = machine.send(lun(0, 0), &TEST_UNIT_READY, &[], 0);
    let (new, _) = machine.send(lun(0, 0), &write10(9, 1), &[0x11; BLOCK], 0);
    assert_eq!(machine.managed(function), None);
    assert_eq!(machine.disks[0].waiting.len(), 1, "what comes after it waits");
    machine.release(0);
    assert_eq!(machine.managed(function), Some(OK));
    assert_eq!(machine.heads(REQUEST), [old.head, ready.head]);
    machine.release(0);
    machine.poll();
    assert_eq!(machine.heads(REQUEST), [new.head]);
    assert_eq!(machine.disks[0].bytes[9 * BLOCK..10 * BLOCK], [0x11; BLOCK]);
}

#[test]
fn functions_are_done_one_after_the_other() {
    let (mut machine, [_, (_, id), _]) = busy();
    let first = machine.manage(UNIT_RESET, lun(0, 0), 0);
    let second = machine.manage(QUERY_TASK, lun(0, 1), id);
    assert_eq!(machine.managed(first), None);
    machine.release(0);
    assert_eq!(machine.managed(first), Some(OK));
    assert_eq!(machine.managed(second), Some(SUCCEEDED));
}

#[test]
fn no_event_can_be_subscribed_to() {
    let mut machine = Machine::new(&[at(0, 0)]);
    for (kind, lun, response) in [
        (1_u32, lun(0, 0), OK),
        (2, lun(0, 0), OK),
        (1, lun(0, 1), INCORRECT_LUN),
        (2, lun(1, 0), BAD_TARGET),
    ] {
        let request = [&kind.to_le_bytes()[..], &lun, &u32::MAX.to_le_bytes()].concat();
        let sent = machine.control(&request, 5);
        machine.poll();
        assert_eq!(machine.reap(0), Some((sent.head, 5)));
        assert_eq!(machine.fetch(sent.response, 6), [0, 0, 0, 0, response, 0xee]);
    }
    // Neither of the types, or too short for its type.
    for request in [&[3; 24][..], &[0; 23], &[1, 0, 0, 0, 1], &[]] {
        let sent = machine.control(request, 1);
        machine.poll();
        assert_eq!(machine.reap(0), Some((sent.head, 1)));
        assert_eq!(machine.fetch(sent.response, 1), [FAILURE], "{request:?}");
    }
    machine.control(&[0; 24], 0);
    assert!(machine.is_broken(), "nowhere to answer");
}

#[test]
fn a_device_reset_waits_for_what_the_disks_have() {
    let (mut machine, _) = busy();
    machine.manage(UNIT_RESET, lun(0, 0), 0);
    machine.poll();
    assert_eq!(machine.try_set(register::STATUS, 0), WriteStatus::Pending);
    for disk in 0..3 {
        assert!(machine.poll().pending_write);
        assert_ne!(machine.get(register::STATUS), 0, "it reads 0 when nothing lands any more");
        machine.release(disk);
    }
    assert!(!machine.poll().pending_write);
    assert_eq!(machine.get(register::STATUS), 0);
    machine.disks.iter_mut().for_each(|disk| disk.held = false);
    machine.bring_up(features());
    assert_eq!(machine.heads(REQUEST), [0_u16; 0], "no chain of before comes back");
    assert_eq!(machine.command(lun(0, 1), &TEST_UNIT_READY, &[], 0).key(), (6, 0x2900));
    let query = machine.manage(QUERY_TASK_SET, lun(1, 0), 0);
    assert_eq!(machine.managed(query), Some(OK));
}

/// RING_RESET (2.6.1): the ring's own requests end, those of the other go on.
#[test]
fn a_ring_that_is_stopped_waits_for_its_own_requests() {
    let mut machine = Machine::new(&[at(0, 0)]);
    machine.disks[0].held = true;
    machine.send(lun(0, 0), &write10(1, 1), &[1; BLOCK], 0);
    let other = machine.send_as(REQUEST + 1, lun(0, 0), (9, 0), &write10(2, 1), &[2; BLOCK], 0);
    machine.poll();
    machine.set(register::QUEUE_SEL, REQUEST as u32);
    assert_eq!(machine.try_set(register::QUEUE_RESET, 1), WriteStatus::Pending);
    assert_eq!(machine.get(register::QUEUE_READY), 1);
    machine.release(0);
    assert!(!machine.poll().pending_write);
    assert_eq!((machine.get(register::QUEUE_READY), machine.get(register::QUEUE_RESET)), (0, 0));
    machine.set_up_ring(REQUEST);
    machine.release(0);
    machine.poll();
    assert_eq!(machine.heads(REQUEST), [0_u16; 0]);
    assert_eq!(machine.heads(REQUEST + 1), [other.head]);
    machine.disks[0].held = false;
    assert!(machine.command(lun(0, 0), &read10(1, 1), &[], BLOCK).is_good());
}
