//! Defects and advisories of other devices (host-std/tests/defects.md), where this one could have them.

use crate::machine::*;
use crate::rig::{BLOCK, TAGS};
use scsi_model::front::virtio_scsi::{REQUEST, wire::attribute};

/// CVE-2022-0216: the request that is being worked on is cancelled, and its memory goes on being written.
#[test]
fn the_request_in_use_is_cancelled() {
    let mut machine = Machine::new(&[at(0, 0)]);
    machine.disks[0].held = true;
    let (sent, id) = machine.send(lun(0, 0), &read10(3, 1), &[], BLOCK);
    machine.poll();
    let abort = machine.manage(0, lun(0, 0), id);
    let again = machine.manage(0, lun(0, 0), id);
    assert_eq!(machine.managed(abort), None);
    assert_eq!(machine.fetch(sent.data, BLOCK), [0xee; BLOCK]);
    machine.release(0);
    assert_eq!(machine.managed(abort), Some(OK));
    assert_eq!(machine.expect(sent).response, ABORTED);
    machine.put(sent.data, &[0xdd; BLOCK]);
    assert_eq!(machine.managed(again), Some(OK));
    assert_eq!(machine.fetch(sent.data, BLOCK), [0xdd; BLOCK], "the driver's own again");
}

/// A driver that makes the same chain available twice gets it back twice, and nothing is mixed up.
#[test]
fn a_head_that_is_in_flight_already() {
    let mut machine = Machine::new(&[at(0, 0)]);
    machine.disks[0].held = true;
    let (sent, id) = machine.send(lun(0, 0), &write10(3, 1), &[1; BLOCK], 0);
    machine.offer_head(REQUEST, sent.head);
    machine.poll();
    assert_eq!(machine.disks[0].waiting.len(), 2);
    let abort = machine.manage(0, lun(0, 0), id);
    assert_eq!(machine.managed(abort), None);
    machine.release(0);
    assert_eq!(machine.managed(abort), None, "both have that name");
    machine.release(0);
    assert_eq!(machine.managed(abort), Some(OK));
    assert_eq!(machine.heads(REQUEST), [sent.head, sent.head]);
}

/// CVE-2016-5403: more in flight than the ring holds.
#[test]
fn an_available_index_that_runs_away_breaks_its_ring_only() {
    let mut machine = Machine::new(&[at(0, 0)]);
    for _ in 0..=RING {
        machine.offer_head(REQUEST + 1, 0);
    }
    assert!(machine.is_broken());
    assert!(machine.command(lun(0, 0), &TEST_UNIT_READY, &[], 0).is_good());
}

/// A chain that changes after it was taken, with its response and its data each in one piece: what was taken counts.
#[test]
fn a_chain_in_few_pieces_is_as_it_was_taken() {
    let mut machine = Machine::new(&[at(0, 0)]);
    machine.disks[0].held = true;
    let (sent, _) = machine.send(lun(0, 0), &read10(3, 1), &[], BLOCK);
    machine.poll();
    let table = REQUEST as u64 * 0x1000;
    for index in [1, 2] {
        machine.put(table + 16 * u64::from(sent.head + index) + 8, &4_u32.to_le_bytes());
    }
    machine.release(0);
    machine.poll();
    let (_, used_len) = machine.reap(REQUEST).unwrap();
    assert!(machine.answer(sent, used_len).is_good());
    assert_eq!(machine.fetch(sent.data, BLOCK), [3; BLOCK]);
}

/// One that was walked again for its many pieces: the command fails, or there is no way to answer.
#[test]
fn a_chain_that_changes_after_it_was_taken() {
    let mut machine = Machine::new(&[at(0, 0)]);
    // Not FUA-capable and write-through, so that a read with FUA flushes first: its segments are asked for later.
    machine.disks[0].held = true;
    let fua_read = [0x28, 0x08, 0, 0, 0, 3, 0, 0, 2, 0];
    let (sent, index) = machine.send_cut(&fua_read, 2 * BLOCK);
    machine.poll();
    // The data is cut short; the response stays where it is.
    let table = REQUEST as u64 * 0x1000;
    machine.put(table + 16 * u64::from(sent.head + index + 1) + 8, &100_u32.to_le_bytes());
    while !machine.disks[0].waiting.is_empty() {
        machine.release(0);
        machine.poll();
    }
    let (_, used_len) = machine.reap(REQUEST).unwrap();
    assert_eq!(machine.answer(sent, used_len).key(), (0xb, 0x4b00), "DATA PHASE ERROR");
    // And the response is gone: there is no way to answer.
    machine.disks[0].held = true;
    let (sent, _) = machine.send_cut(&read10(3, 1), BLOCK);
    machine.poll();
    machine.put(table + 16 * u64::from(sent.head + 1) + 8, &4_u32.to_le_bytes());
    machine.put(table + 16 * u64::from(sent.head + 1) + 12, &WRITE.to_le_bytes());
    machine.release(0);
    assert!(machine.is_broken());
}

/// host-std/tests/defects.md, 20: a chain that bites its tail, or points outside.
#[test]
fn a_chain_that_is_none_breaks_its_ring() {
    for (next, flags) in [(0, NEXT), (RING, NEXT), (0, INDIRECT), (0, INDIRECT | NEXT)] {
        let mut machine = Machine::new(&[at(0, 0)]);
        machine.descriptor(REQUEST as u64 * 0x1000, 5, (0x9000, 51, flags), next);
        machine.descriptor(REQUEST as u64 * 0x1000, 0, (0x9000, 51, NEXT), 5);
        machine.offer_head(REQUEST, 5);
        assert!(machine.is_broken());
    }
}

/// CVE-2016-6490: descriptors of no bytes are no progress, and no trouble.
#[test]
fn empty_descriptors_are_left_out() {
    let mut machine = Machine::new(&[at(0, 0)]);
    let first = machine.next(REQUEST);
    let [head, response] = [0, 1].map(|index| Machine::buffer(REQUEST, first + index));
    machine.put(head, &Machine::header(lun(0, 0), 1, 0, &TEST_UNIT_READY));
    machine
        .offer(REQUEST, &[(0, 0, 0), (head, 51, 0), (u64::MAX, 0, 0), (response, 108, WRITE), (0, 0, WRITE)]);
    machine.poll();
    assert_eq!(machine.reap(REQUEST).map(|(_, len)| len), Some(12));
    assert_eq!(machine.fetch(response + 10, 2), [GOOD, OK]);
}

/// CVE-2015-5158: an operation code of a group without a length.
#[test]
fn an_operation_code_of_an_unknown_group() {
    let mut machine = Machine::new(&[at(0, 0)]);
    for opcode in [0x60, 0x7f, 0xc0, 0xff] {
        assert_eq!(machine.command(lun(0, 0), &[opcode; 16], &[], 64).key(), (5, 0x2000));
    }
}

/// Memory that is not there: the header's is an error of the request, the response's one of the ring.
#[test]
fn buffers_outside_memory() {
    let beyond = u64::from(u32::MAX);
    let mut machine = Machine::new(&[at(0, 0)]);
    let first = machine.next(REQUEST);
    let [head, response] = [0, 1].map(|index| Machine::buffer(REQUEST, first + index));
    machine.put(head, &Machine::header(lun(0, 0), 1, 0, &INQUIRY));
    machine.offer(REQUEST, &[(beyond, 51, 0), (response, 108, WRITE)]);
    machine.poll();
    assert_eq!(machine.reap(REQUEST).map(|(_, len)| len), Some(12));
    assert_eq!(machine.fetch(response + 11, 1), [FAILURE]);
    machine.offer(REQUEST, &[(head, 51, 0), (response, 108, WRITE), (beyond, 255, WRITE)]);
    machine.poll();
    let (_, used_len) = machine.reap(REQUEST).unwrap();
    assert_eq!(
        (machine.fetch(response + 10, 1)[0], used_len),
        (CHECK_CONDITION, 12 + 18),
        "DATA PHASE ERROR"
    );
    machine.offer(REQUEST, &[(head, 51, 0), (beyond, 108 + 255, WRITE)]);
    assert!(machine.is_broken());
}

/// A flood on one ring keeps neither the other nor the control queue from being served.
#[test]
fn every_ring_is_served_while_one_is_flooded() {
    let mut machine = Machine::new(&[at(0, 0)]);
    machine.disks[0].held = true;
    for _ in 0..TAGS {
        machine.send_as(REQUEST + 1, lun(0, 0), (7, attribute::ORDERED), &write10(1, 1), &[1; BLOCK], 0);
    }
    machine.poll();
    for _ in 0..8 {
        machine.send_as(REQUEST, lun(0, 0), (8, 0), &TEST_UNIT_READY, &[], 0);
    }
    let function = machine.manage(1, lun(0, 0), 0);
    assert_eq!(machine.managed(function), None);
    assert_eq!(machine.heads(REQUEST).len(), 8, "TASK SET FULL");
    machine.release(0);
    assert_eq!(machine.managed(function), Some(OK));
    assert_eq!(machine.heads(REQUEST + 1).len(), TAGS);
}
