//! Tasks, task management, unit attentions, power.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::arithmetic_side_effects,
    clippy::panic,
    reason = "tests"
)]

mod rig;

use blk_core::op::Op;
use blk_core::snapshot::{Snapshot, SnapshotError, load, save};
use blk_core::storage::{Cache, IoError, IoErrorKind};
use blk_core::units::Lba;
use rig::{BLOCK, Disk, Rig, TAGS};
use scsi_model::disk::UnitAttention;
use scsi_model::{Attribute, LogicalUnit, Nexus, Outcome, ResetCause};

const TEST_UNIT_READY: [u8; 6] = [0; 6];
const REQUEST_SENSE: [u8; 6] = [0x03, 0, 0, 0, 18, 0];

fn write(lba: u8) -> [u8; 10] {
    [0x2a, 0, 0, 0, 0, lba, 0, 0, 1, 0]
}

fn starts(rig: &mut Rig) -> Vec<u64> {
    rig.log().iter().filter_map(Op::extent).map(|extent| extent.start.0).collect()
}

/// SPC-4, Extended INQUIRY Data VPD page and SAM-5 8: what page 86h offers is done.
#[test]
fn task_attributes_order_what_reaches_the_storage() {
    let mut rig = Rig::new();
    rig.disk.held = true;
    let tasks =
        [(0, Attribute::Simple), (1, Attribute::Simple), (2, Attribute::Ordered), (3, Attribute::Simple)];
    for (tag, attribute) in tasks {
        rig.enqueue(tag, attribute, &write(tag as u8), &[1; BLOCK], 0);
    }
    rig.poll();
    assert_eq!(starts(&mut rig), [0, 1]);
    rig.enqueue(4, Attribute::HeadOfQueue, &write(4), &[1; BLOCK], 0);
    rig.poll();
    assert_eq!(starts(&mut rig), [4]);
    for _ in 0..2 {
        rig.disk.release(&rig.memory, 1);
        rig.poll();
        assert_eq!(starts(&mut rig), []);
    }
    rig.disk.release(&rig.memory, 0);
    rig.poll();
    assert_eq!(starts(&mut rig), [2]);
    rig.disk.release(&rig.memory, 0);
    assert_eq!(rig.tags(), [2]);
    assert_eq!(starts(&mut rig), [3]);
}

#[test]
fn a_full_task_set_refuses_and_loses_nothing() {
    let mut rig = Rig::new();
    rig.disk.held = true;
    for tag in 0..TAGS as u64 {
        rig.enqueue(tag, Attribute::Simple, &write(tag as u8), &[1; BLOCK], 0);
    }
    let one_more = scsi_model::Task {
        tag: 99,
        nexus: scsi_model::Nexus::default(),
        attribute: Attribute::Simple,
        cdb: scsi_model::Cdb::new(&TEST_UNIT_READY),
        data_out_bytes: 0,
        data_in_bytes: 0,
    };
    assert!(rig.unit.enqueue(one_more).is_err());
    rig.poll();
    assert!(rig.unit.enqueue(one_more).is_err(), "they run, and are in the set");
    while !rig.disk.waiting.is_empty() {
        rig.disk.release(&rig.memory, 0);
    }
    assert_eq!(rig.tags().len(), TAGS);
    assert!(rig.unit.is_idle());
}

#[test]
fn a_busy_storage_loses_nothing() {
    let mut rig = Rig::new();
    (rig.disk.held, rig.disk.room, rig.disk.info.fua) = (true, 1, false);
    let fua = [0x2a, 0x08, 0, 0, 0, 5, 0, 0, 1, 0];
    let verified = [0x2e, 0, 0, 0, 0, 6, 0, 0, 1, 0];
    let read = [0x28, 0x08, 0, 0, 0, 7, 0, 0, 1, 0];
    for (tag, cdb) in [(0, fua), (1, verified)] {
        rig.enqueue(tag, Attribute::Simple, &cdb, &[9; BLOCK], 0);
    }
    rig.enqueue(2, Attribute::Simple, &read, &[], BLOCK as u64);
    let mut ended = Vec::new();
    while !rig.unit.is_idle() {
        ended.extend(rig.poll());
        if !rig.disk.waiting.is_empty() {
            rig.disk.release(&rig.memory, 0);
        }
    }
    assert!(ended.iter().all(|one| one.outcome == Outcome::Good), "{ended:?}");
    assert_eq!(ended.len(), 3);
    assert_eq!((rig.sector(5), rig.sector(6)), (vec![9; BLOCK], vec![9; BLOCK]));
    assert_eq!(rig.log().len(), 2 + 3 + 2, "each with its flush, and read back");
}

#[test]
fn compare_and_write_runs_with_nothing_beside_it() {
    let mut rig = Rig::new();
    rig.disk.held = true;
    let compare = [0x89, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0];
    let data = [rig.sector(3), vec![0x55; BLOCK]].concat();
    rig.enqueue(1, Attribute::Simple, &write(2), &[1; BLOCK], 0);
    rig.enqueue(2, Attribute::Simple, &compare, &data, 0);
    rig.enqueue(3, Attribute::HeadOfQueue, &write(3), &[1; BLOCK], 0);
    rig.poll();
    assert_eq!(starts(&mut rig), [3], "HEAD OF QUEUE");
    rig.disk.release(&rig.memory, 0);
    rig.poll();
    assert_eq!(starts(&mut rig), [2]);
    rig.disk.release(&rig.memory, 0);
    rig.poll();
    assert_eq!(starts(&mut rig), [3], "the comparison, alone");
    rig.enqueue(4, Attribute::HeadOfQueue, &write(3), &[1; BLOCK], 0);
    rig.poll();
    assert_eq!(starts(&mut rig), []);
    rig.disk.release(&rig.memory, 0);
    rig.poll();
    assert_eq!(starts(&mut rig), [3], "a miscompare, and only now the next write");
}

#[test]
fn a_poll_does_bounded_work() {
    let mut rig = Rig::new();
    let pattern = [0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0];
    rig.enqueue(1, Attribute::Simple, &pattern, &[7; BLOCK], 0);
    let first = rig.unit.poll(&rig.memory, &mut rig.disk, &mut rig.transport);
    assert_eq!(first, scsi_model::Polled::Again);
    assert!(rig.log().len() < 64);
    assert_eq!(rig.tags(), [1]);
    assert!((0..2048).all(|lba| rig.sector(lba)[0] == 7));
}

/// CVE-2022-0216: the request in use is not taken away under the storage.
#[test]
fn an_aborted_task_that_runs_ends_when_the_storage_has_let_go() {
    let mut rig = Rig::new();
    rig.disk.held = true;
    rig.enqueue(1, Attribute::Simple, &write(1), &[1; BLOCK], 0);
    rig.enqueue(2, Attribute::Ordered, &write(2), &[2; BLOCK], 0);
    rig.poll();
    assert!(rig.unit.abort_task(1));
    assert!(rig.unit.abort_task(2));
    assert!(!rig.unit.abort_task(3));
    let ended = rig.poll();
    assert_eq!((ended.len(), ended[0].tag, &ended[0].outcome), (1, 2, &Outcome::Aborted));
    assert!(rig.unit.is_managing() && rig.unit.contains(1) && !rig.unit.contains(2));
    rig.disk.release(&rig.memory, 0);
    let ended = rig.poll();
    assert_eq!((ended[0].tag, &ended[0].outcome), (1, &Outcome::Aborted));
    assert!(!rig.unit.is_managing() && rig.unit.is_idle());
    assert_eq!(starts(&mut rig), [1], "what waited never ran");
}

#[test]
fn aborting_the_set_ends_every_task_once() {
    let mut rig = Rig::new();
    rig.disk.held = true;
    for tag in 0..3 {
        rig.enqueue(tag, Attribute::Simple, &write(tag as u8), &[1; BLOCK], 0);
    }
    rig.enqueue(3, Attribute::Ordered, &write(3), &[1; BLOCK], 0);
    rig.poll();
    rig.unit.abort_task_set(scsi_model::Nexus::default());
    assert_eq!(rig.tags(), [3]);
    for expected in 0..3 {
        assert!(rig.unit.is_managing());
        rig.disk.release(&rig.memory, 0);
        assert_eq!(rig.tags(), [expected]);
    }
    assert!(!rig.unit.is_managing());
}

/// SAM-5, ABORT TASK SET and CLEAR TASK SET: the tasks of one nexus, and of all.
#[test]
fn abort_task_set_is_of_one_nexus_and_clear_task_set_of_all() {
    let (one, other) = (Nexus(1), Nexus(2));
    for clear in [false, true] {
        let mut rig = Rig::new();
        rig.disk.held = true;
        for (tag, nexus) in [(0, one), (1, other), (2, one), (3, other)] {
            // The last two wait.
            let attribute = if tag < 2 { Attribute::Simple } else { Attribute::Ordered };
            let cdb = scsi_model::Cdb::new(&write(tag as u8));
            let task = scsi_model::Task {
                tag,
                nexus,
                attribute,
                cdb,
                data_out_bytes: BLOCK as u64,
                data_in_bytes: 0,
            };
            rig.unit.enqueue(task).unwrap();
        }
        rig.poll();
        if clear {
            rig.unit.clear_task_set();
        } else {
            rig.unit.abort_task_set(one);
        }
        let mut ended = rig.poll();
        while !rig.disk.waiting.is_empty() {
            rig.disk.release(&rig.memory, 0);
            ended.extend(rig.poll());
        }
        ended.sort_by_key(|ended| ended.tag);
        let aborted: Vec<bool> = ended.iter().map(|ended| ended.outcome == Outcome::Aborted).collect();
        assert_eq!(aborted, if clear { [true; 4] } else { [true, false, true, false] });
        assert!(!rig.unit.is_managing() && rig.unit.is_idle());
    }
}

/// A nexus that is lost takes its own tasks along.
#[test]
fn a_lost_nexus_leaves_the_tasks_of_others() {
    let mut rig = Rig::new();
    for (tag, nexus) in [(0, Nexus(1)), (1, Nexus(2))] {
        let (attribute, cdb) = (Attribute::Simple, scsi_model::Cdb::new(&REQUEST_SENSE));
        let task = scsi_model::Task { tag, nexus, attribute, cdb, data_out_bytes: 0, data_in_bytes: 18 };
        rig.unit.enqueue(task).unwrap();
    }
    rig.unit.lose_nexus(Nexus(2));
    let ended = rig.poll();
    assert_eq!((ended[0].tag, &ended[0].outcome), (1, &Outcome::Aborted));
    assert_eq!((ended[1].tag, &ended[1].outcome), (0, &Outcome::Good));
}

/// A long task over a disk that does everything at once does not keep the caller, and lets others have their turn.
#[test]
fn a_long_task_over_a_disk_that_does_all_at_once_takes_turns() {
    let mut rig = Rig::new();
    rig.disk.at_once = rig::AtOnce::All;
    let pattern = [0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0];
    rig.enqueue(1, Attribute::Simple, &pattern, &[7; BLOCK], 0);
    let mut polls = 0;
    let mut tags = Vec::new();
    loop {
        let polled = rig.unit.poll(&rig.memory, &mut rig.disk, &mut rig.transport);
        assert!(rig.log().len() < 64);
        polls += 1;
        match polled {
            scsi_model::Polled::Ended(ended) => tags.push(ended.tag),
            scsi_model::Polled::Again if polls == 2 => {
                rig.enqueue(2, Attribute::Simple, &write(3), &[1; BLOCK], 0);
            }
            scsi_model::Polled::Again => {}
            scsi_model::Polled::Idle => break,
        }
    }
    assert_eq!(tags, [2, 1]);
    assert!(polls > 4 && rig.unit.is_idle());
    assert_eq!(rig.sector(2047), vec![7; BLOCK]);
}

/// One that is due ends where it is aborted, and is gone with a reset.
#[test]
fn a_task_that_is_due_can_be_aborted_and_reset() {
    for reset in [false, true] {
        let mut rig = Rig::new();
        rig.disk.at_once = rig::AtOnce::All;
        let pattern = [0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0];
        rig.enqueue(1, Attribute::Simple, &pattern, &[7; BLOCK], 0);
        let polled = rig.unit.poll(&rig.memory, &mut rig.disk, &mut rig.transport);
        assert_eq!(polled, scsi_model::Polled::Again);
        rig.log();
        if reset {
            rig.unit.reset(ResetCause::LogicalUnit);
        } else {
            assert!(rig.unit.abort_task(1) && rig.unit.is_managing());
        }
        let ended = rig.poll();
        assert_eq!((ended.len(), ended[0].tag, &ended[0].outcome), (1, 1, &Outcome::Aborted));
        assert_eq!(rig.log(), []);
        assert!(rig.unit.is_idle() && !rig.unit.is_managing());
    }
}

#[test]
fn a_long_task_stops_where_it_was_aborted() {
    let mut rig = Rig::new();
    rig.disk.held = true;
    let pattern = [0x93, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0];
    rig.enqueue(1, Attribute::Simple, &pattern, &[7; BLOCK], 0);
    rig.poll();
    rig.unit.abort_task(1);
    rig.disk.release(&rig.memory, 0);
    assert_eq!(rig.tags(), [1]);
    assert_eq!(starts(&mut rig), [0]);
}

/// host-std/tests/defects.md, 18; CVE-2023-5088: nothing of before a reset lands after it.
#[test]
fn a_reset_waits_for_what_is_in_flight() {
    let mut rig = Rig::new();
    rig.disk.held = true;
    rig.enqueue(1, Attribute::Simple, &write(0), &[0x11; BLOCK], 0);
    rig.enqueue(2, Attribute::Ordered, &write(0), &[0x22; BLOCK], 0);
    rig.poll();
    rig.unit.reset(ResetCause::LogicalUnit);
    rig.enqueue(3, Attribute::Simple, &write(0), &[0x33; BLOCK], 0);
    assert_eq!(rig.tags(), [], "still draining");
    assert!(rig.unit.is_managing());
    rig.disk.release(&rig.memory, 0);
    let ended = rig.poll();
    let aborted: Vec<_> =
        ended.iter().filter(|one| one.outcome == Outcome::Aborted).map(|one| one.tag).collect();
    assert_eq!(aborted, [2, 1]);
    assert_eq!(ended.last().unwrap().tag, 3, "refused by the unit attention");
    assert!(!rig.unit.is_managing());
    assert_eq!(starts(&mut rig), [0], "nothing runs again");
    rig.disk.held = false;
    rig.data_out(&write(0), &[0x33; BLOCK]);
    assert_eq!(rig.sector(0), [0x33; BLOCK]);
}

#[test]
fn a_reset_during_a_reset_reports_each_task_once() {
    let mut rig = Rig::new();
    rig.disk.held = true;
    rig.enqueue(1, Attribute::Simple, &write(0), &[1; BLOCK], 0);
    rig.poll();
    rig.unit.reset(ResetCause::LogicalUnit);
    rig.poll();
    rig.enqueue(2, Attribute::Simple, &write(0), &[1; BLOCK], 0);
    rig.unit.reset(ResetCause::Hard);
    rig.disk.release(&rig.memory, 0);
    assert_eq!(rig.tags(), [1, 2]);
    assert!(rig.unit.is_idle() && !rig.unit.is_managing());
    rig.disk.held = false;
    assert_eq!(rig.sense(&TEST_UNIT_READY, &[]), (6, 0x2900));
    assert_eq!(rig.outcome(&TEST_UNIT_READY, &[], 0), Outcome::Good);
}

#[test]
fn unit_attentions_stop_commands_but_not_the_quiet_ones() {
    let mut rig = Rig::fresh(Disk::new(Cache::WriteBack));
    assert_eq!(rig.data_in(&[0x12, 0, 0, 0, 36, 0], 36).len(), 36);
    assert_eq!(rig.data_in(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], 16).len(), 16);
    assert_eq!(rig.sense(&write(0), &[1; BLOCK]), (6, 0x2900));
    assert_eq!(rig.log(), [], "the command was not executed");
    assert_eq!(rig.outcome(&TEST_UNIT_READY, &[], 0), Outcome::Good);
    rig.unit.raise(UnitAttention::ModeParametersChanged);
    rig.unit.raise(UnitAttention::PowerOn);
    let sense = rig.data_in(&REQUEST_SENSE, 18);
    assert_eq!((sense[0], sense[2], sense[12]), (0x70, 6, 0x29), "the most urgent first");
    let sense = rig.data_in(&[0x03, 1, 0, 0, 18, 0], 18);
    assert_eq!(sense, [0x72, 6, 0x2a, 1, 0, 0, 0, 0]);
    assert_eq!(rig.data_in(&REQUEST_SENSE, 18)[2], 0);
    rig.unit.raise(UnitAttention::ReportedLunsChanged);
    rig.data_in(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0], 16);
    assert_eq!(rig.outcome(&TEST_UNIT_READY, &[], 0), Outcome::Good, "REPORT LUNS served it");
}

#[test]
fn a_resize_reaches_the_guest() {
    let mut rig = Rig::new();
    rig.disk.info.sectors = 1024;
    assert_eq!(rig.sense(&TEST_UNIT_READY, &[]), (6, 0x2a09));
    assert_eq!(rig.data_in(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], 8)[2..4], [3, 0xff]);
    assert_eq!(rig.sense(&[0x28, 0, 0, 0, 4, 0, 0, 0, 1, 0], &[]), (5, 0x2100));
}

/// SPC-4, deferred errors: an error of a command that had ended with GOOD.
#[test]
fn a_deferred_error_is_told_once_and_stops_one_command() {
    let mut rig = Rig::new();
    let error = IoError { kind: IoErrorKind::Medium, lba: Some(Lba(9)) };
    let info = rig.disk.info;
    rig.unit.defer_error(error, &info);
    assert_eq!(rig.data_in(&[0x12, 0, 0, 0, 36, 0], 36).len(), 36);
    let sense = rig.sense_bytes(&write(0), &[1; BLOCK]);
    assert_eq!((sense[0], sense[2], sense[12], sense[6]), (0xf1, 3, 0x0c, 9));
    assert_eq!(rig.log(), []);
    rig.data_out(&write(0), &[1; BLOCK]);
    rig.unit.defer_error(error, &info);
    assert_eq!(rig.data_in(&[0x03, 1, 0, 0, 255, 0], 255)[..2], [0x73, 3]);
}

#[test]
fn stopping_flushes_and_a_stopped_unit_is_not_ready() {
    let mut rig = Rig::new();
    rig.data_out(&[0x1b, 1, 0, 0, 0, 0], &[]);
    assert_eq!(rig.log(), [Op::Flush]);
    for cdb in [&TEST_UNIT_READY[..], &write(0), &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]] {
        assert_eq!(rig.sense(cdb, &[1; BLOCK]), (2, 0x0402));
    }
    assert_eq!(rig.data_in(&REQUEST_SENSE, 18)[12..14], [4, 2]);
    assert_eq!(rig.data_in(&[0x12, 0, 0, 0, 36, 0], 36).len(), 36);
    rig.data_out(&[0x1b, 0, 0, 0, 1, 0], &[]);
    rig.data_out(&write(0), &[1; BLOCK]);
    rig.log();
    rig.data_out(&[0x1b, 0, 0, 0, 4, 0], &[]);
    assert_eq!(rig.log(), [], "NO_FLUSH");
    rig.data_out(&[0x1b, 0, 0, 0, 0, 0], &[]);
    assert_eq!(rig.log(), [Op::Flush], "a stop without NO_FLUSH makes good what that one left out");
    rig.data_out(&[0x1b, 0, 0, 0, 1, 0], &[]);
    rig.disk.errors.push_back(Some(IoErrorKind::Medium.into()));
    assert_eq!(rig.sense(&[0x1b, 0, 0, 0, 0, 0], &[]), (3, 0x0c00));
    assert_eq!(rig.outcome(&TEST_UNIT_READY, &[], 0), Outcome::Good, "not stopped, since not flushed");
    assert_eq!(rig.sense(&[0x1b, 0, 0, 0, 2, 0], &[]), (5, 0x2400), "LOEJ");
    assert_eq!(rig.sense(&[0x1b, 0, 0, 0, 0x30, 0], &[]), (5, 0x2400), "POWER CONDITION");
    assert_eq!(rig.outcome(&[0x1e, 0, 0, 0, 1, 0], &[], 0), Outcome::Good);
}

#[test]
fn too_little_room_is_an_overrun_and_nothing_is_done() {
    let mut rig = Rig::new();
    assert_eq!(rig.outcome(&write(0), &[1; BLOCK - 1], 0), Outcome::Overrun);
    assert_eq!(rig.outcome(&[0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0], &[], 2 * BLOCK as u64 - 1), Outcome::Overrun);
    assert_eq!(rig.log(), []);
}

/// CVE-2023-0330: addresses of device registers are not memory, and so an error of the one command.
#[test]
fn a_buffer_outside_memory_fails_the_command_only() {
    let mut rig = Rig::new();
    rig.memory.0.borrow_mut().truncate(16);
    let task = |cdb: &[u8]| scsi_model::Task {
        tag: 7,
        nexus: scsi_model::Nexus::default(),
        attribute: Attribute::Simple,
        cdb: scsi_model::Cdb::new(cdb),
        data_out_bytes: 24,
        data_in_bytes: 96,
    };
    for cdb in [&[0x12, 0, 0, 0, 96, 0][..], &[0x15, 0x10, 0, 0, 24, 0], &[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]]
    {
        rig.unit.enqueue(task(cdb)).unwrap();
        let Outcome::CheckCondition(sense) = rig.poll().remove(0).outcome else { panic!("{cdb:02x?}") };
        assert_eq!((sense[2], sense[12]), (0xb, 0x4b));
    }
}

#[test]
fn the_state_survives_save_and_restore_in_mid_flight() {
    let mut rig = Rig::new();
    rig.disk.held = true;
    for tag in 0..3 {
        rig.enqueue(tag, Attribute::Ordered, &write(tag as u8), &[1; BLOCK], 0);
    }
    rig.poll();
    let bytes = postcard::to_stdvec(&rig.unit).unwrap();
    let restored = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(rig.unit, restored);
    rig.unit = restored;
    for expected in 0..3 {
        rig.disk.release(&rig.memory, 0);
        assert_eq!(rig.tags(), [expected]);
    }
}

#[test]
fn a_unit_with_a_task_or_a_reset_under_way_is_not_saved() {
    let mut rig = Rig::new();
    rig.disk.held = true;
    let mut buffer = [0; LogicalUnit::<TAGS>::BYTES_MAX];
    rig.enqueue(0, Attribute::Simple, &write(0), &[1; BLOCK], 0);
    assert_eq!(save(&rig.unit, &mut buffer), Err(SnapshotError::NotQuiet), "it waits");
    rig.poll();
    assert_eq!(save(&rig.unit, &mut buffer), Err(SnapshotError::NotQuiet), "it runs");
    rig.unit.reset(ResetCause::LogicalUnit);
    assert_eq!((rig.tags(), rig.unit.is_managing()), (vec![], true));
    assert_eq!(save(&rig.unit, &mut buffer), Err(SnapshotError::NotQuiet), "the storage has it");
    rig.disk.release(&rig.memory, 0);
    assert_eq!(rig.tags(), [0]);
    let saved = save(&rig.unit, &mut buffer).unwrap();
    assert_eq!((load(saved), load::<LogicalUnit<3>>(saved).is_err()), (Ok(rig.unit.clone()), true));
}
