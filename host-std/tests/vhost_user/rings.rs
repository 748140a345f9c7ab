//! Rings that start, stop and break with requests under way.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::time::Duration;

use blk_core::memory::GuestMemory as _;
use blk_core::units::GuestAddr;
use host_std::testing::client::{Blk, Options, Request};
use rustix::net::{SendFlags, send};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _, VhostUserProtocolFeatures};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;

/// How long something is seen not to happen.
const QUIET: Duration = Duration::from_millis(60);

#[test]
fn each_queue_serves_its_own_requests_and_sees_what_the_others_wrote() {
    const QUEUES: u16 = 4;
    let disk = Disk::new();
    let served = disk.serve(QUEUES, "");
    let mut guest = disk.connect(options(QUEUES));
    let blocks = |queue: u16| u64::from(queue) * 16..u64::from(queue) * 16 + 16;
    for round in 0..10 {
        let tickets: Vec<_> =
            (0..QUEUES).map(|queue| submit_writes(&mut guest, queue, blocks(queue), round)).collect();
        for (queue, tickets) in (0..).zip(&tickets) {
            wait_all(&mut guest, queue, tickets);
        }
    }
    for queue in 0..QUEUES {
        check(&mut guest, queue, blocks((queue + 1) % QUEUES), 9);
    }
    for stats in served.controller.stats().queues {
        assert_eq!((stats.writes, stats.reads, stats.errors), (160, 16, 0));
    }
}

#[test]
fn a_flush_on_one_queue_does_not_hold_up_another() {
    let disk = Disk::new();
    let _served = disk.serve(2, "flush:1s");
    let mut guest = disk.connect(options(2));
    let flush = guest.submit(0, Request::Flush).unwrap();
    guest.session_mut().kick(0).unwrap();
    for _ in 0..50 {
        let read = guest.submit(1, Request::Read { sector: 0, bytes: BLOCK as u32 }).unwrap();
        assert!(guest.wait_for(read).unwrap().is_ok());
    }
    assert_eq!(guest.poll(0).unwrap(), None, "the flush takes a second");
    assert!(guest.wait_for(flush).unwrap().is_ok());
}

pub(super) fn a_ring_that_is_stopped_completes_what_was_taken() {
    let disk = Disk::new();
    let served = disk.serve(1, "write:100ms");
    let mut guest = disk.connect(options(1));
    submit_writes(&mut guest, 0, 0..16, 1);
    served.until_in_flight(0, 16);
    let base = guest.session_mut().stop_ring(0).unwrap();
    assert_eq!(take_done(&mut guest, 0), 16, "not all requests came back before the answer");
    assert_eq!(base, 16);
}

#[test]
fn stopped_it_completes_what_was_taken() {
    a_ring_that_is_stopped_completes_what_was_taken();
}

#[test]
fn a_ring_goes_on_where_it_was_stopped() {
    let disk = Disk::new();
    let served = disk.serve(1, "");
    let mut guest = disk.connect(options(1));
    for round in 0..20 {
        let taken = guest.session().available_index(0);
        served.controller.pause();
        let tickets = submit_writes(&mut guest, 0, 0..8, round);
        assert_eq!(guest.session_mut().stop_ring(0).unwrap(), taken, "paused, it takes nothing");
        served.controller.resume();
        guest.session_mut().start_ring(0, taken).unwrap();
        wait_all(&mut guest, 0, &tickets);
        check(&mut guest, 0, 0..8, round);
    }
}

#[test]
fn a_reset_of_the_device_drains_and_leaves_the_cache_setting() {
    let disk = Disk::new();
    let served = disk.serve(2, "write:50ms");
    let mut guest = disk.connect(options(2));
    guest.set_writeback(false).unwrap();
    for round in 0..3 {
        for queue in 0..2 {
            let first = u64::from(queue) * 8;
            submit_writes(&mut guest, queue, first..first + 8, round);
            served.until_in_flight(queue.into(), 8);
        }
        guest.session_mut().message(|frontend| frontend.reset_device()).unwrap();
        assert_eq!((take_done(&mut guest, 0), take_done(&mut guest, 1)), (8, 8));
        assert_eq!(guest.read_config().unwrap().writeback, 0);
        guest.session_mut().restart_driver().unwrap();
        check(&mut guest, 0, 0..16, round);
    }
}

#[test]
fn regions_come_and_go_under_load() {
    let disk = Disk::new();
    let served = disk.serve(2, "write@20%:2ms;seed=3");
    let mut guest = disk.connect(options(2));
    let known = served.controller.stats().memory_tables;
    for round in 0..100 {
        let blocks = |queue: u16| u64::from(queue) * 16..u64::from(queue) * 16 + 16;
        let tickets: Vec<_> =
            (0..2).map(|queue| submit_writes(&mut guest, queue, blocks(queue), round)).collect();
        guest.session_mut().plug_spare(round % 2 == 0).unwrap();
        for (queue, tickets) in (0..).zip(&tickets) {
            wait_all(&mut guest, queue, tickets);
        }
    }
    check(&mut guest, 0, 0..32, 99);
    assert_eq!(served.controller.stats().memory_tables, known + 100);
}

#[test]
fn a_ring_takes_requests_only_while_it_is_enabled() {
    let disk = Disk::new();
    let served = disk.serve(2, "write:30ms");
    let mut guest = disk.connect(options(2));
    let enable = |guest: &mut Blk, enable| {
        guest.session_mut().message(|frontend| frontend.set_vring_enable(0, enable)).unwrap();
    };
    submit_writes(&mut guest, 0, 0..8, 1);
    served.until_in_flight(0, 8);
    enable(&mut guest, false);
    assert_eq!(take_done(&mut guest, 0), 8, "what was taken completes before the answer");
    submit_writes(&mut guest, 0, 0..8, 2);
    let other = submit_writes(&mut guest, 1, 8..16, 2);
    wait_all(&mut guest, 1, &other);
    std::thread::sleep(QUIET);
    assert_eq!((take_done(&mut guest, 0), served.controller.stats().queues[0].writes), (0, 8));
    enable(&mut guest, true);
    let mut done = 0;
    until("it goes on without another kick", || {
        done += take_done(&mut guest, 0);
        done == 8
    });
    check(&mut guest, 0, 0..16, 2);
}

/// SET_VRING_KICK without a descriptor: the crate vhost has no message for it.
fn send_no_kick(frontend: &Frontend, ring: u64) {
    const SET_VRING_KICK: u32 = 12;
    const NO_FD: u64 = 1 << 8;
    let header = [SET_VRING_KICK, 1, 8].map(u32::to_ne_bytes).concat();
    let message = [header, (ring | NO_FD).to_ne_bytes().to_vec()].concat();
    // SAFETY: the socket is open as long as the frontend, which outlives this call.
    let socket = unsafe { BorrowedFd::borrow_raw(frontend.as_raw_fd()) };
    assert_eq!(send(socket, &message, SendFlags::NOSIGNAL), Ok(message.len()));
}

#[test]
fn a_ring_without_a_kick_is_polled() {
    let disk = Disk::new();
    let served = disk.serve(1, "");
    let mut guest = disk.connect(options(1));
    guest.write(0, &contents(0, 1)).unwrap();
    // Once for a ring that runs, and once for one that starts so.
    for stop in [false, true] {
        if stop {
            guest.session_mut().stop_ring(0).unwrap();
        }
        let sent = guest.session_mut().message(|frontend| {
            send_no_kick(frontend, 0);
            // Its answer says that the message before it was obeyed.
            frontend.get_features()
        });
        sent.unwrap();
        let kicks = served.controller.stats().queues[0].kicks;
        let data = contents(1, stop.into());
        let request = Request::Write { sector: BLOCK_SECTORS, data: Payload::Bytes(&data) };
        guest.submit(0, request).unwrap();
        until("it is found without a kick", || take_done(&mut guest, 0) == 1);
        assert_eq!(served.controller.stats().queues[0].kicks, kicks);
    }
    check(&mut guest, 0, 1..2, 1);
}

#[test]
fn a_broken_ring_says_so_and_harms_no_other() {
    const AVAILABLE_INDEX: GuestAddr = GuestAddr(0x4000_1002);
    let disk = Disk::new();
    let _served = disk.serve(2, "");
    let mut guest = disk.connect(options(2));
    let err = EventFd::new(EFD_NONBLOCK).unwrap();
    guest.session_mut().message(|frontend| frontend.set_vring_err(0, &err)).unwrap();
    let memory = guest.session().memory().clone();
    assert_eq!(memory.load_u16_acquire(AVAILABLE_INDEX), Ok(guest.session().available_index(0)));
    guest.submit(0, Request::Flush).unwrap();
    assert!(err.read().is_err(), "nothing is wrong yet");
    // More requests than the ring has entries.
    memory.store_u16_release(AVAILABLE_INDEX, 1000).unwrap();
    guest.session_mut().kick(0).unwrap();
    until("the server says that the ring is broken", || err.read().is_ok());
    let tickets = submit_writes(&mut guest, 1, 0..16, 7);
    wait_all(&mut guest, 1, &tickets);
    assert!(err.read().is_err(), "it says so once");
    guest.session_mut().restart_driver().unwrap();
    check(&mut guest, 0, 0..16, 7);
}

/// The next one's requests are not overtaken by those of the one before.
#[test]
fn a_client_that_vanishes_leaves_nothing_in_flight() {
    let disk = Disk::new();
    let served = disk.serve(2, "write:50ms");
    for round in 0..4 {
        let mut guest = disk.connect(options(2));
        submit_writes(&mut guest, 0, 0..16, round);
        served.until_in_flight(0, 16);
        drop(guest);
        let mut next = disk.connect(options(2));
        let stats = served.controller.stats();
        assert!(stats.queues.iter().all(|queue| queue.in_flight == 0), "{stats:?}");
        check(&mut next, 1, 0..16, round);
        assert_eq!((take_done(&mut next, 0), take_done(&mut next, 1)), (0, 0));
    }
}

#[test]
fn a_client_that_takes_no_requests_is_not_told_of_a_resize_and_reads_it() {
    let disk = Disk::new();
    let served = disk.serve(1, "");
    for with in [true, false] {
        let without =
            if with { VhostUserProtocolFeatures::empty() } else { VhostUserProtocolFeatures::BACKEND_REQ };
        let mut guest = disk.connect(Options { ..options(1) }.without_protocol(without));
        let sectors = guest.sectors() + 2048;
        served.backend.resize(Some(sectors * 512)).unwrap();
        served.controller.resized();
        if with {
            assert_eq!(guest.session().wait_for_config_change(0, PATIENCE), 1);
        }
        guest.read_config().unwrap();
        assert_eq!(guest.sectors(), sectors);
        guest.write(sectors - BLOCK_SECTORS, &contents(5, 5)).unwrap();
        assert_eq!(guest.session().config_changes(), u64::from(with));
    }
}
