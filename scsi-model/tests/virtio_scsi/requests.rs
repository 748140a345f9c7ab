//! Requests: addresses, layouts, residuals, sense, attributes.

use blk_core::op::Op;

use crate::machine::*;
use crate::rig::{BLOCK, TAGS};
use scsi_model::front::virtio_scsi::{REQUEST, wire::attribute};

#[test]
fn each_unit_has_its_own_disk_and_hears_of_the_power_by_itself() {
    let mut machine = Machine::new(&[at(0, 0), at(0, 1), at(7, 300)]);
    for (index, lun) in [lun(0, 0), lun(0, 1), lun(7, 300)].into_iter().enumerate() {
        let value = 0x10 + index as u8;
        assert!(machine.command(lun, &write10(3, 1), &[value; BLOCK], 0).is_good());
        assert_eq!(machine.disks[index].bytes[3 * BLOCK..4 * BLOCK], [value; BLOCK]);
        assert_eq!(machine.data_in(lun, &read10(3, 1), BLOCK), [value; BLOCK]);
    }
    // Both forms of a number address the same unit.
    assert_eq!(machine.data_in([1, 0, 0, 1, 0, 0, 0, 0], &read10(3, 1), BLOCK), [0x11; BLOCK]);
}

/// SPC-4, INQUIRY; SAM-5, incorrect logical unit numbers.
#[test]
fn a_target_answers_for_a_unit_that_it_does_not_have() {
    let mut machine = Machine::new(&[at(2, 5), at(2, 300)]);
    for absent in [lun(2, 0), lun(2, 6), [1, 2, 0x80, 0, 0, 0, 0, 0], [1, 2, 0, 5, 0, 1, 0, 0]] {
        let inquiry = machine.data_in(absent, &INQUIRY, 255);
        assert_eq!((inquiry[0], inquiry.len()), (0x7f, 96), "no unit, and none can be there");
        assert_eq!(machine.data_in(absent, &[0x12, 1, 0, 0, 255, 0], 255), [0x7f, 0, 0, 1, 0]);
        assert_eq!(machine.command(absent, &TEST_UNIT_READY, &[], 0).key(), (5, 0x2500));
        assert_eq!(machine.command(absent, &read10(0, 1), &[], BLOCK).key(), (5, 0x2500));
        let sense = machine.data_in(absent, &[0x03, 0, 0, 0, 18, 0], 18);
        assert_eq!((sense[2], sense[12]), (5, 0x25), "REQUEST SENSE says it without failing");
    }
    let report = [0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    let luns = machine.data_in(lun(2, 0), &report, 256);
    assert_eq!(
        luns,
        [&[0, 0, 0, 16, 0, 0, 0, 0][..], &[0, 5, 0, 0, 0, 0, 0, 0], &[0x41, 0x2c, 0, 0, 0, 0, 0, 0]].concat()
    );
    assert_eq!(machine.data_in(lun(2, 5), &report, 256), luns, "a unit reports the same");
    assert_eq!(machine.command(lun(2, 6), &report, &[], 256).key(), (5, 0x2500));
}

#[test]
fn the_well_known_unit_reports_every_unit_of_the_host() {
    const WELL_KNOWN: [u8; 8] = [0xc1, 1, 0, 0, 0, 0, 0, 0];
    let mut machine = Machine::new(&[at(0, 0), at(2, 300)]);
    let report = [0xa0, 0, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0];
    let luns = machine.data_in(WELL_KNOWN, &report, 256);
    assert_eq!(luns, [&[0, 0, 0, 16, 0, 0, 0, 0][..], &lun(0, 0), &lun(2, 300)].concat());
    assert_eq!(machine.data_in(WELL_KNOWN, &INQUIRY, 255)[0], 0x1e);
    assert!(machine.command(WELL_KNOWN, &TEST_UNIT_READY, &[], 0).is_good());
    assert_eq!(machine.command(WELL_KNOWN, &read10(0, 1), &[], BLOCK).key(), (5, 0x2000));
}

#[test]
fn where_there_is_no_target_nothing_is_processed() {
    let mut machine = Machine::new(&[at(0, 0)]);
    for nowhere in [lun(1, 0), lun(255, 0), [0; 8], [0xc1, 2, 0, 0, 0, 0, 0, 0], [1, 9, 0xff, 0, 0, 0, 0, 0]]
    {
        let answer = machine.command(nowhere, &INQUIRY, &[], 255);
        assert_eq!((answer.response, answer.status, answer.residual), (BAD_TARGET, GOOD, 255));
        assert_eq!(answer.used_len, 12, "CVE-2024-8612: no more is written");
    }
}

/// 5.6.6.1: the residual is the buffer's length without what was moved; OVERRUN if the buffer is too short.
#[test]
fn residuals_say_what_was_not_moved() {
    let mut machine = Machine::new(&[at(0, 0)]);
    let unit = lun(0, 0);
    let mut residual = |cdb: &[u8], out: usize, room: usize| {
        let answer = machine.command(unit, cdb, &vec![7; out], room);
        (answer.response, answer.residual, answer.used_len)
    };
    assert_eq!(residual(&INQUIRY, 0, 255), (OK, 255 - 96, 108 + 96), "data-in underrun");
    assert_eq!(residual(&read10(0, 1), 0, 2048), (OK, 1536, 108 + 512));
    assert_eq!(residual(&read10(0, 2), 0, 1024), (OK, 0, 108 + 1024));
    assert_eq!(residual(&read10(0, 2), 0, 1023), (OVERRUN, 1023, 12));
    assert_eq!(residual(&INQUIRY, 0, 95), (OVERRUN, 95, 12));
    assert_eq!(residual(&write10(9, 1), 2048, 0), (OK, 1536, 12), "data-out underrun");
    assert_eq!(residual(&write10(9, 3), 1024, 0), (OVERRUN, 1024, 12));
    assert_eq!(residual(&read10(0, 1), 512, 0), (OVERRUN, 512, 12), "data the other way");
    assert_eq!(residual(&TEST_UNIT_READY, 0, 64), (OK, 64, 12));
    assert_eq!(residual(&[0xff; 6], 0, 64), (OK, 64, 12 + 18), "CHECK CONDITION");
}

#[test]
fn a_request_cut_in_any_way_is_the_same_request() {
    let mut machine = Machine::new(&[at(0, 0)]);
    let header = Machine::header(lun(0, 0), 1, 0, &read10(3, 2));
    let base = Machine::buffer(REQUEST, machine.next(REQUEST));
    let (answer, data) = (base + 0x100, base + 0x200);
    machine.put(base, &header);
    for cuts in [&[(0, 51)][..], &[(0, 1), (1, 18), (19, 32)], &[(0, 50), (50, 1)]] {
        for (response_cut, indirect) in [(108, false), (1, false), (11, true), (107, true)] {
            let mut pieces: Vec<Piece> = cuts.iter().map(|&(at, len)| (base + at, len, 0)).collect();
            pieces.push((answer, response_cut, WRITE));
            // What is left of the response shares a buffer with the data.
            pieces.push((answer + u64::from(response_cut), 0x100 + 700 - response_cut, WRITE));
            pieces.push((data + 800, 324, WRITE));
            let rest = u64::from(0x100 + 700 - response_cut) - (108 - u64::from(response_cut));
            machine.put(answer, &[0xee; 0x600]);
            if indirect {
                let table = base + 0x800;
                for (index, &(addr, len, flags)) in (0..).zip(&pieces) {
                    let more = if usize::from(index) + 1 < pieces.len() { NEXT } else { 0 };
                    machine.descriptor(table, index, (addr, len, flags | more), index + 1);
                }
                pieces = vec![(table, 16 * pieces.len() as u32, INDIRECT)];
            }
            machine.offer(REQUEST, &pieces);
            machine.poll();
            assert_eq!(machine.reap(REQUEST).map(|(_, len)| len), Some(108 + 1024));
            let first = machine.fetch(answer + 108, rest as usize);
            let second = machine.fetch(data + 800, 1024 - rest as usize);
            assert_eq!([first, second].concat(), machine.disks[0].bytes[3 * BLOCK..5 * BLOCK]);
            let head = machine.fetch(answer, 12);
            assert_eq!(head, [0, 0, 0, 0, 148, 0, 0, 0, 0, 0, GOOD, OK]);
        }
    }
}

#[test]
fn sense_data_is_cut_to_the_size_that_the_driver_chose() {
    let mut machine = Machine::new(&[at(0, 0)]);
    assert_eq!(machine.command(lun(0, 0), &[0xff; 6], &[], 0).sense.len(), 18);
    machine.set(blk_core::virtio::mmio::register::CONFIG + 20, 10);
    // The response is 22 bytes long now: what follows is data.
    let (sent, _) = machine.send(lun(0, 0), &[0xff; 6], &[], 0);
    let answer = machine.expect(sent);
    assert_eq!((answer.sense.len(), answer.used_len), (10, 22));
    assert_eq!(answer.residual, 108 - 22);
    assert_eq!(answer.sense[..3], [0x70, 0, 5]);
}

#[test]
fn a_command_block_is_as_long_as_the_driver_chose() {
    let mut machine = Machine::new(&[at(0, 0)]);
    machine.set(blk_core::virtio::mmio::register::CONFIG + 24, 10);
    let header = &Machine::header(lun(0, 0), 1, 0, &write10(3, 1))[..29];
    let first = machine.next(REQUEST);
    let [head, data, response] = [0, 1, 2].map(|index| Machine::buffer(REQUEST, first + index));
    machine.put(head, header);
    machine.put(data, &[0x77; BLOCK]);
    machine.offer(REQUEST, &[(head, 29, 0), (data, 512, 0), (response, 108, WRITE)]);
    machine.poll();
    assert_eq!(machine.fetch(response + 10, 2), [GOOD, OK]);
    assert_eq!(machine.disks[0].bytes[3 * BLOCK..4 * BLOCK], [0x77; BLOCK]);
    // A command of 16 bytes does not fit.
    let mut header = Machine::header(lun(0, 0), 1, 0, &[0x88])[..29].to_vec();
    header[28] = 0;
    machine.put(head, &header);
    machine.offer(REQUEST, &[(head, 29, 0), (response, 108, WRITE), (data, 512, WRITE)]);
    machine.poll();
    assert_eq!(machine.fetch(response + 10, 2), [CHECK_CONDITION, OK]);
}

#[test]
fn attributes_order_what_reaches_the_disk_across_queues() {
    let mut machine = Machine::new(&[at(0, 0)]);
    machine.disks[0].held = true;
    machine.disks[0].log.clear();
    let unit = lun(0, 0);
    let send = |machine: &mut Machine, ring: usize, attribute: u8, lba: u8| {
        machine.send_as(ring, unit, (lba.into(), attribute), &write10(lba, 1), &[lba; BLOCK], 0);
        machine.poll();
    };
    send(&mut machine, REQUEST, attribute::SIMPLE, 1);
    send(&mut machine, REQUEST + 1, attribute::ORDERED, 2);
    send(&mut machine, REQUEST, attribute::SIMPLE, 3);
    assert_eq!(started(&mut machine), [1], "the request queues share the task set");
    send(&mut machine, REQUEST, attribute::HEAD, 4);
    assert_eq!(started(&mut machine), [4]);
    machine.release(0);
    machine.release(0);
    machine.poll();
    assert_eq!(started(&mut machine), [2]);
    machine.release(0);
    machine.poll();
    assert_eq!(started(&mut machine), [3]);
}

fn started(machine: &mut Machine) -> Vec<u64> {
    let log = std::mem::take(&mut machine.disks[0].log);
    log.iter().filter_map(Op::extent).map(|extent| extent.start.0).collect()
}

#[test]
fn an_attribute_that_no_unit_has_is_refused() {
    let mut machine = Machine::new(&[at(0, 0)]);
    for attribute in [attribute::ACA, 4, 0xff] {
        let sent = machine.send_as(REQUEST, lun(0, 0), (1, attribute), &write10(3, 1), &[1; BLOCK], 0);
        assert_eq!(machine.expect(sent).key(), (5, 0x4900));
    }
    assert!(machine.disks[0].log.iter().all(|op| !op.mutates()));
}

#[test]
fn more_commands_than_a_unit_takes_find_its_task_set_full() {
    let mut machine = Machine::new(&[at(0, 0), at(0, 1)]);
    machine.disks[0].held = true;
    for lba in 0..TAGS as u8 {
        machine.send(lun(0, 0), &write10(lba, 1), &[1; BLOCK], 0);
    }
    machine.poll();
    assert_eq!(machine.heads(REQUEST), [0_u16; 0]);
    let answer = machine.command(lun(0, 0), &read10(0, 1), &[], BLOCK);
    assert_eq!((answer.response, answer.status), (OK, 0x28), "TASK SET FULL");
    assert!(
        machine.command(lun(0, 1), &read10(0, 1), &[], BLOCK).is_good(),
        "the other unit is not concerned"
    );
    while !machine.disks[0].waiting.is_empty() {
        machine.release(0);
    }
    machine.poll();
    assert_eq!(machine.heads(REQUEST).len(), TAGS);
}

/// 5.6.6.1.1: INOUT is not offered.
#[test]
fn data_both_ways_is_a_failure() {
    let mut machine = Machine::new(&[at(0, 0)]);
    let first = machine.next(REQUEST);
    let [head, data, response] = [0, 1, 2].map(|index| Machine::buffer(REQUEST, first + index));
    machine.put(head, &Machine::header(lun(0, 0), 1, 0, &write10(3, 1)));
    machine.offer(REQUEST, &[(head, 51, 0), (data, 512, 0), (response, 108, WRITE), (data, 512, WRITE)]);
    machine.poll();
    assert_eq!(machine.reap(REQUEST).map(|(_, len)| len), Some(12));
    assert_eq!(machine.fetch(response + 10, 2), [GOOD, FAILURE]);
    assert!(machine.disks[0].log.iter().all(|op| !op.mutates()));
}

#[test]
fn a_defective_request_is_answered_where_it_can_be_and_breaks_the_ring_where_not() {
    // Readable bytes, writable bytes.
    for (readable, writable, answered) in
        [(51, 107, true), (50, 108, true), (0, 108, true), (0, 12, true), (51, 11, false), (51, 0, false)]
    {
        let mut machine = Machine::new(&[at(0, 0)]);
        let first = machine.next(REQUEST);
        let [head, response] = [0, 1].map(|index| Machine::buffer(REQUEST, first + index));
        machine.put(head, &Machine::header(lun(0, 0), 1, 0, &TEST_UNIT_READY));
        let pieces: Vec<Piece> = [(head, readable, 0), (response, writable, WRITE)].into();
        machine.offer(REQUEST, &pieces);
        assert_eq!(machine.is_broken(), !answered, "{readable} {writable}");
        assert_eq!(machine.reap(REQUEST).map(|(_, len)| len), answered.then_some(12));
        if answered {
            assert_eq!(machine.fetch(response + 11, 1), [FAILURE]);
        }
        // The control queue is another ring: it goes on.
        let query = machine.manage(7, lun(0, 0), 0);
        assert_eq!(machine.managed(query), Some(OK));
    }
}
