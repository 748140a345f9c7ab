//! An oracle that never fails is a defect: each promise with a history that breaks it, and one beside it that does not.

use std::string::ToString;

use super::{Oracle, Violation, Why};
use crate::sim::guest::{Action, Outcome, SectorRun};
use crate::sim::value::{GARBAGE, INITIAL, ValueSet, ZEROES, written_by};

const ZERO: SectorRun = SectorRun::ZERO;
const ONE: SectorRun = SectorRun::ONE;
const BOTH: SectorRun = SectorRun::BOTH;
const WRITE: Action = Action::Write(ZERO);
const OK: Outcome = Outcome::Ok { read: [None; 2] };
const A: u8 = written_by(0);
const B: u8 = written_by(1);

/// A history, told event by event.
struct History {
    oracle: Oracle,
    next: u8,
}

impl History {
    fn new(cache: bool) -> Self {
        let mut oracle = Oracle::new(false);
        oracle.look(cache, !cache).unwrap();
        Self { oracle, next: 0 }
    }

    fn submit(&mut self, action: Action) -> u8 {
        self.oracle.submitted(action);
        self.next += 1;
        self.next - 1
    }

    fn end(&mut self, id: u8, outcome: Outcome) -> Result<(), Violation> {
        self.oracle.ended(id, outcome, true)
    }

    /// Submits and ends well.
    fn run(&mut self, action: Action) -> u8 {
        let id = self.submit(action);
        self.end(id, OK).unwrap();
        id
    }

    fn read(&mut self, value: u8) -> Result<(), Violation> {
        let id = self.submit(Action::Read(ZERO));
        self.end(id, Outcome::Ok { read: [Some(value), None] })
    }

    #[track_caller]
    fn allows(&self, values: &[u8]) {
        assert_eq!(self.oracle.allowed(0), set(values));
    }

    fn cut(&self, first: &[u8], second: &[u8]) -> Result<(), Violation> {
        self.oracle.check_power_cut([set(first), set(second)])
    }
}

fn set(values: &[u8]) -> ValueSet {
    values.iter().fold(ValueSet::EMPTY, |set, &value| set.with(ValueSet::of(value)))
}

#[test]
fn a_completed_write_is_volatile_until_a_flush_that_followed_it_is_done() {
    let mut history = History::new(true);
    history.allows(&[INITIAL]);
    history.run(WRITE);
    history.allows(&[INITIAL, A]);
    let flush = history.submit(Action::Flush);
    history.allows(&[INITIAL, A]);
    history.end(flush, OK).unwrap();
    history.allows(&[A]);
    let lost = Violation::Lost { sector: 0, value: INITIAL, newer: 0, why: Why::Flushed(1) };
    assert_eq!(history.cut(&[A, INITIAL], &[INITIAL]), Err(lost));
    assert_eq!(
        lost.to_string(),
        "sector 0 can hold the old data, although A was done before B made it stable"
    );
    assert_eq!(history.cut(&[A], &[INITIAL]), Ok(()));
}

// host-std/tests/defects.md, 13.
#[test]
fn a_flush_does_not_cover_a_write_that_was_in_flight_when_it_was_submitted() {
    let mut history = History::new(true);
    let write = history.submit(WRITE);
    let flush = history.submit(Action::Flush);
    history.end(write, OK).unwrap();
    history.end(flush, OK).unwrap();
    history.allows(&[INITIAL, A]);
}

#[test]
fn a_failed_flush_or_write_makes_nothing_stable() {
    let mut history = History::new(true);
    history.run(WRITE);
    let flush = history.submit(Action::Flush);
    history.end(flush, Outcome::Failed).unwrap();
    history.allows(&[INITIAL, A]);

    let mut history = History::new(true);
    let write = history.submit(Action::WriteFua(ZERO));
    history.end(write, Outcome::Failed).unwrap();
    history.allows(&[INITIAL, A]);
}

#[test]
fn a_fua_write_and_one_with_the_cache_off_are_stable_when_done() {
    let mut history = History::new(true);
    let write = history.submit(Action::WriteFua(ZERO));
    history.allows(&[INITIAL, A]);
    history.end(write, OK).unwrap();
    history.allows(&[A]);

    let mut history = History::new(false);
    history.run(WRITE);
    history.allows(&[A]);
}

#[test]
fn a_write_under_way_while_the_cache_comes_on_need_not_be_stable() {
    let mut history = History::new(false);
    let write = history.submit(WRITE);
    history.run(Action::CacheOn);
    history.oracle.look(true, false).unwrap();
    history.end(write, OK).unwrap();
    history.allows(&[INITIAL, A]);
}

#[test]
fn a_write_that_ends_after_the_cache_was_turned_off_is_stable() {
    let mut history = History::new(true);
    let write = history.submit(WRITE);
    history.run(Action::CacheOff);
    history.oracle.look(false, true).unwrap();
    history.end(write, OK).unwrap();
    history.allows(&[A]);
}

#[test]
fn turning_the_cache_off_flushes_and_shows() {
    let mut history = History::new(true);
    history.run(WRITE);
    history.run(Action::CacheOff);
    history.allows(&[A]);
    assert_eq!(history.oracle.clone().look(true, false), Err(Violation::CacheStillOn { step: 1 }));
    assert_eq!(history.oracle.look(false, true), Ok(()));
    history.run(Action::CacheOn);
    assert_eq!(history.oracle.look(true, false), Ok(()), "it was turned on again");
}

#[test]
fn a_stable_write_rules_out_what_precedes_it_and_not_what_runs_beside_it() {
    let mut history = History::new(true);
    let beside = history.submit(WRITE);
    history.run(Action::WriteFua(ZERO));
    history.end(beside, OK).unwrap();
    history.allows(&[A, B]);
    history.run(Action::WriteFua(ZERO));
    history.allows(&[written_by(2)]);
}

#[test]
fn a_discard_leaves_the_old_data_or_zeroes_even_when_it_is_stable() {
    let mut history = History::new(true);
    history.run(Action::WriteFua(ZERO));
    history.run(Action::Discard(ZERO));
    history.allows(&[A, ZEROES]);
    history.run(Action::Flush);
    history.allows(&[A, ZEROES]);
    history.run(Action::WriteZeroes(ZERO));
    history.run(Action::Flush);
    history.allows(&[ZEROES]);
}

#[test]
fn what_nobody_wrote_is_never_allowed() {
    let history = History::new(true);
    for value in [GARBAGE, A, ZEROES] {
        assert_eq!(history.cut(&[value], &[INITIAL]), Err(Violation::Unwritten { sector: 0, value }));
    }
}

#[test]
fn a_write_that_a_reset_took_away_cannot_come_back_over_a_newer_one() {
    let mut history = History::new(true);
    let write = history.submit(WRITE);
    history.run(Action::Reset);
    history.end(write, Outcome::Aborted).unwrap();
    history.allows(&[INITIAL, A]);
    history.run(Action::WriteFua(ZERO));
    history.allows(&[written_by(2)]);
    assert_eq!(history.end(write, OK), Err(Violation::EndedTwice { step: 0 }));
}

#[test]
fn nothing_is_in_flight_when_a_reset_is_done() {
    let mut history = History::new(true);
    history.submit(WRITE);
    let reset = history.submit(Action::Reset);
    let busy = history.oracle.clone().ended(reset, OK, false);
    assert_eq!(busy, Err(Violation::InFlightAfterReset { step: 1 }));
    assert_eq!(history.oracle.ended(reset, OK, true), Ok(()));
}

#[test]
fn a_read_returns_what_no_completed_newer_write_has_superseded() {
    let mut history = History::new(true);
    assert_eq!(history.read(A), Err(Violation::AlienRead { step: 0, sector: 0, value: A }));
    let mut history = History::new(true);
    let write = history.submit(WRITE);
    assert_eq!(history.read(INITIAL), Ok(()), "the write is under way");
    assert_eq!(history.read(A), Ok(()));
    history.end(write, OK).unwrap();
    assert_eq!(history.read(A), Ok(()));
    let stale = Violation::StaleRead { step: 4, sector: 0, value: INITIAL, newer: 0 };
    assert_eq!(history.read(INITIAL), Err(stale));
}

#[test]
fn a_torn_sector_is_never_read() {
    let mut history = History::new(true);
    history.run(WRITE);
    let read = history.submit(Action::Read(ZERO));
    let torn = history.end(read, Outcome::Ok { read: [None; 2] });
    assert_eq!(torn, Err(Violation::TornRead { step: 1, sector: 0 }));
}

#[test]
fn a_barrier_orders_execution_even_with_the_cache_on() {
    let mut history = History::new(true);
    let older = history.submit(WRITE);
    let barrier = history.submit(Action::WriteOrdered(ONE));
    let younger = history.submit(Action::Read(ZERO));
    let overtakes = Violation::Overtakes { step: barrier, older };
    assert_eq!(history.oracle.clone().ended(barrier, OK, true), Err(overtakes));
    history.end(older, OK).unwrap();
    let overtakes = Violation::Overtakes { step: younger, older: barrier };
    let value = Outcome::Ok { read: [Some(A), None] };
    assert_eq!(history.oracle.clone().ended(younger, value, true), Err(overtakes));
    history.end(barrier, OK).unwrap();
    let stale = history.oracle.clone().ended(younger, Outcome::Ok { read: [Some(INITIAL), None] }, true);
    assert!(
        matches!(stale, Err(Violation::StaleRead { newer: 0, .. })),
        "it was behind the barrier: {stale:?}"
    );
    assert_eq!(history.end(younger, value), Ok(()));
}

#[test]
fn a_barrier_orders_what_a_power_cut_leaves_where_that_is_promised() {
    for promised in [true, false] {
        let mut history = History::new(true);
        history.oracle.look(true, promised).unwrap();
        history.run(WRITE);
        history.submit(Action::WriteOrdered(ONE));
        let cut = history.cut(&[INITIAL, A], &[INITIAL, B]);
        assert_eq!(cut.is_err(), promised, "SCSI's ORDERED with WCE=1 promises execution order only");
        assert_eq!(history.cut(&[A], &[INITIAL, B]), Ok(()));
        assert_eq!(history.cut(&[INITIAL, A], &[INITIAL]), Ok(()));
    }
}

#[test]
fn what_follows_a_barrier_is_not_seen_without_it_nor_without_what_precedes_it() {
    let mut history = History::new(true);
    history.oracle.look(true, true).unwrap();
    history.run(WRITE);
    history.run(Action::WriteOrdered(ZERO));
    history.run(Action::Write(ONE));
    let c = written_by(2);
    for without in [INITIAL, A] {
        let cut = history.cut(&[without, B], &[c]);
        assert!(
            matches!(cut, Err(Violation::Reordered { step: 2, promised: true, .. })),
            "{without}: {cut:?}"
        );
    }
    assert_eq!(history.cut(&[INITIAL, A, B], &[INITIAL]), Ok(()));
    assert_eq!(history.cut(&[B], &[INITIAL, c]), Ok(()));
}

#[test]
fn a_program_may_need_a_barrier_that_its_front_does_not_have() {
    let mut oracle = Oracle::new(true);
    oracle.look(true, false).unwrap();
    oracle.submitted(WRITE);
    oracle.submitted(Action::WriteOrdered(ONE));
    assert_eq!(oracle.ended(1, OK, true), Ok(()), "the front never promised an order");
    let cut = oracle.check_power_cut([set(&[INITIAL, A]), set(&[INITIAL, B])]);
    assert!(matches!(cut, Err(Violation::Reordered { promised: false, .. })));
}

#[test]
fn after_a_failed_durable_operation_nothing_that_writes_succeeds() {
    for failing in [Action::Flush, Action::WriteFua(ZERO), Action::CacheOff] {
        for next in [Action::Flush, WRITE, Action::WriteFua(ONE), Action::WriteZeroes(ZERO), Action::CacheOff]
        {
            let mut history = History::new(true);
            let beside = history.submit(WRITE);
            let step = history.submit(failing);
            history.end(step, Outcome::Failed).unwrap();
            assert_eq!(history.end(beside, OK), Ok(()), "it was submitted before");
            let step = history.submit(next);
            assert_eq!(history.end(step, OK), Err(Violation::NotFailStop { step }), "{failing:?}, {next:?}");
        }
        let mut history = History::new(true);
        let step = history.submit(failing);
        history.end(step, Outcome::Failed).unwrap();
        assert_eq!(history.read(INITIAL), Ok(()), "reads go on");
        history.run(Action::Reset);
        let step = history.submit(Action::Flush);
        assert!(history.end(step, OK).is_err(), "a reset does not clear it");
    }
}

#[test]
fn a_power_cut_settles_what_the_sectors_hold_and_the_steps_are_numbered_on() {
    let mut history = History::new(true);
    history.run(Action::Write(BOTH));
    let mut oracle = history.oracle.after_power_cut([A, INITIAL], 1);
    oracle.look(true, false).unwrap();
    assert_eq!((oracle.allowed(0), oracle.allowed(1)), (set(&[A]), set(&[INITIAL])));
    oracle.submitted(WRITE);
    assert_eq!(oracle.ended(0, OK, true), Err(Violation::EndedTwice { step: 0 }), "of the life before");
    assert_eq!(oracle.ended(1, OK, true), Ok(()));
    assert_eq!(oracle.allowed(0), set(&[A, B]));
}
