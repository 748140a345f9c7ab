//! The server's defects, each found by the test that it is meant for.

use std::panic::catch_unwind;

use host_std::server::{Mutant, set_mutant};

use super::{cache, recovery, rings};

fn assert_found(mutant: Mutant, test: fn()) {
    set_mutant(Some(mutant));
    let found = catch_unwind(test).is_err();
    set_mutant(None);
    assert!(found, "{mutant:?} was not found");
}

#[test]
fn a_stop_that_does_not_drain_is_found() {
    assert_found(Mutant::StopWithoutDrain, rings::a_ring_that_is_stopped_completes_what_was_taken);
}

#[test]
fn a_client_believed_to_flush_is_found() {
    let test = cache::a_client_that_never_read_the_setting_is_served_write_through;
    assert_found(Mutant::UnknownTakenAsWriteBack, test);
}

#[test]
fn a_cache_turned_off_without_a_flush_is_found() {
    assert_found(Mutant::CacheOffWithoutFlush, cache::turning_the_cache_off_drains_and_flushes);
}

#[test]
fn a_request_that_was_not_recorded_is_found() {
    assert_found(Mutant::TakenNotRecorded, recovery::what_was_taken_completes_once);
}
