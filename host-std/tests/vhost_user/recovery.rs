//! A server that is killed, and the one that takes its place: the client keeps the in-flight region.

use host_std::testing::client::{ClientError, Options};
use vhost::vhost_user::VhostUserProtocolFeatures;

use super::*;

/// The later half of a batch completes first: neither half is done again, and none is lost.
pub(super) fn what_was_taken_completes_once() {
    // A server's first eight writes are those of the one before it.
    const FAULTS: &str = "write@9-16:300ms";
    let disk = Disk::new();
    let mut served = disk.serve(2, FAULTS);
    let mut guest = disk.connect(Options { timeout: Duration::from_secs(4), ..options(2) });
    let first = submit_writes(&mut guest, 1, 0..8, 0);
    wait_all(&mut guest, 1, &first);
    for round in 1..=4 {
        let tickets = submit_writes(&mut guest, 1, 0..16, round);
        let mut done = 0;
        until("the later half has completed", || {
            done += take_done(&mut guest, 1);
            done == 8
        });
        served.kill();
        served = disk.serve(2, FAULTS);
        guest.session_mut().reconnect().unwrap();
        // The client finds out what comes back twice, or was not asked for.
        wait_all(&mut guest, 1, &tickets[..8]);
        assert_eq!(served.controller.stats().resubmitted, 8, "round {round}");
        check(&mut guest, 0, 0..16, round);
    }
}

#[test]
fn every_request_of_a_killed_server_completes_once() {
    what_was_taken_completes_once();
}

#[test]
fn every_queue_goes_on() {
    let disk = Disk::new();
    let served = disk.serve(2, "write:200ms");
    let mut guest = disk.connect(options(2));
    let blocks = |queue: u16| u64::from(queue) * 16..u64::from(queue) * 16 + 16;
    let tickets: Vec<_> = (0..2).map(|queue| submit_writes(&mut guest, queue, blocks(queue), 1)).collect();
    for queue in 0..2 {
        served.until_in_flight(queue, 16);
    }
    served.kill();
    let served = disk.serve(2, "");
    guest.session_mut().reconnect().unwrap();
    for (queue, tickets) in (0..).zip(&tickets) {
        wait_all(&mut guest, queue, tickets);
    }
    assert_eq!(served.controller.stats().resubmitted, 32);
    check(&mut guest, 0, 0..32, 1);
}

/// Killed at any moment of a stream of requests: some have completed, some are taken, some wait.
#[test]
fn a_stream_of_requests_outlives_its_servers() {
    let seed = fastrand::u64(..);
    eprintln!("SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let disk = Disk::new();
    let mut served = disk.serve(1, "any@30%:1ms;seed=1");
    let mut guest = disk.connect(options(1));
    for round in 0..30 {
        let mut tickets = Vec::new();
        for chunk in 0..4 {
            tickets.extend(submit_writes(&mut guest, 0, chunk * 16..chunk * 16 + 16, round));
            tickets.push(guest.submit(0, Request::Flush).unwrap());
        }
        guest.session_mut().kick(0).unwrap();
        std::thread::sleep(Duration::from_micros(random.u64(..1500)));
        served.kill();
        served = disk.serve(1, "any@30%:1ms;seed=1");
        guest.session_mut().reconnect().unwrap();
        wait_all(&mut guest, 0, &tickets);
        check(&mut guest, 0, 0..64, round);
    }
}

#[test]
fn the_cache_setting_outlives_a_server() {
    let disk = Disk::new();
    let mut served = disk.serve(1, "");
    // At later connections it reads nothing: only the region knows.
    let mut guest = disk.connect(Options { config_bytes: 0, ..options(1) });
    for on in [true, false, true] {
        guest.set_writeback(on).unwrap();
        served.kill();
        served = disk.serve(1, "");
        guest.session_mut().reconnect().unwrap();
        guest.write(0, &contents(0, 1)).unwrap();
        assert_eq!(served.durable() == 0, on, "writeback={on}");
        assert_eq!(guest.read_config().unwrap().writeback, u8::from(on));
    }
}

#[test]
fn without_a_region_nothing_is_known_of_the_cache() {
    let disk = Disk::new();
    let served = disk.serve(1, "");
    let without = VhostUserProtocolFeatures::INFLIGHT_SHMFD;
    let mut guest = disk.connect(Options { config_bytes: 0, ..options(1) }.without_protocol(without));
    guest.write(0, &contents(0, 1)).unwrap();
    assert_eq!(served.durable(), 0);
    served.kill();
    let served = disk.serve(1, "");
    guest.session_mut().reconnect().unwrap();
    guest.write(0, &contents(0, 2)).unwrap();
    assert_ne!(served.durable(), 0, "a write was acknowledged and is not stable");
}

/// A successor on the same image must not say of it what the kernel no longer knows.
#[test]
fn the_latch_outlives_a_server() {
    for by_driver in [true, false] {
        let disk = Disk::new();
        let served = disk.serve(1, "flush@1:eio");
        let mut guest = disk.connect(options(1));
        guest.write(0, &contents(0, 1)).unwrap();
        // A flush that the guest asked for, and one for the cache that it turns off.
        let failed = if by_driver { guest.flush() } else { guest.set_writeback(false) };
        assert!(failed.is_err());
        served.kill();
        let served = disk.serve(1, "");
        guest.session_mut().reconnect().unwrap();
        assert!(served.backend.latched().is_some());
        assert!(matches!(guest.flush(), Err(ClientError::Failed { status: 1, .. })));
    }
}

/// The region is the client's to write. Here one holds a latch of an image that was put right since, as a forged one would: it is
/// that client's, each time it comes, and no other's.
#[test]
fn a_latch_that_a_client_brings_ends_with_it() {
    let disk = Disk::new();
    let served = disk.serve(1, "flush@1:eio");
    let mut forger = disk.connect(options(1));
    forger.write(0, &contents(0, 1)).unwrap();
    assert!(forger.flush().is_err());
    served.kill();
    let served = disk.serve(1, "");
    for _ in 0..2 {
        forger.session_mut().reconnect().unwrap();
        assert!(matches!(forger.flush(), Err(ClientError::Failed { status: 1, .. })));
        assert!(served.backend.latched().is_some());
        forger.session_mut().disconnect();
        let mut other = disk.connect(options(1));
        assert_eq!(served.backend.latched(), None);
        other.write(0, &contents(0, 2)).unwrap();
        other.flush().unwrap();
    }
}
