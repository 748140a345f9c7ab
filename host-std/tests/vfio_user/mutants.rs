//! The server's defects, each found by the test that it is meant for.

use std::panic::catch_unwind;

use host_std::server::{Mutant, set_mutant};

use super::{dma, life};

fn assert_found(mutant: Mutant, test: fn()) {
    set_mutant(Some(mutant));
    let found = catch_unwind(test).is_err();
    set_mutant(None);
    assert!(found, "{mutant:?} was not found");
}

#[test]
fn an_unmap_that_does_not_drain_is_found() {
    assert_found(Mutant::StopWithoutDrain, dma::an_unmap_in_mid_dma_is_answered_when_nothing_lands_any_more);
}

#[test]
fn a_client_that_goes_without_a_drain_is_found() {
    assert_found(
        Mutant::StopWithoutDrain,
        life::a_client_that_is_killed_in_mid_dma_leaves_a_disk_at_rest_for_the_next,
    );
}

#[test]
fn a_reset_that_does_not_wait_is_found() {
    assert_found(Mutant::StopWithoutDrain, life::a_reset_with_writes_in_flight_waits_for_them);
}
