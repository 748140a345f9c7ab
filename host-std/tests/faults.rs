//! What a guest sees when something fails: an error or a pause, as the policy says; never a false success, never a hang.
//!
//! The server is `blk-host serve` in a process of its own, the guest is `host_std::testing::client`, of which every wait has a deadline.

mod serving;

use std::time::{Duration, Instant};

use host_std::testing::client::{Blk, ClientError, Options, Payload, Request};
use serving::{Disk, Shadow};

const BLOCK: usize = 4096;

fn options() -> Options {
    Options { transfer_bytes: BLOCK as u32, segment_bytes: BLOCK as u32, ..Options::default() }
}

/// The status that a request was answered with.
fn status(result: Result<(), ClientError>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(ClientError::Failed { status, .. }) => status,
        Err(error) => panic!("neither success nor an error of the device: {error}"),
    }
}

#[test]
fn a_write_that_fails_is_reported_and_none_of_it_is_called_done() {
    let disk = Disk::new(1 << 20);
    let server = disk.serve("werror=report", &["--fault", "write@3:eio;write@5:enospc"]);
    let mut guest = Blk::connect(server.socket(), options()).unwrap();
    let statuses: Vec<u8> = (0..8).map(|at| status(guest.write(at * 8, &[at as u8 + 1; BLOCK]))).collect();
    assert_eq!(statuses, [0, 0, 1, 0, 1, 0, 0, 0]);
    guest.flush().unwrap();
    for at in [0, 1, 3, 5, 6, 7] {
        let mut back = [0; BLOCK];
        guest.read(at * 8, &mut back).unwrap();
        assert_eq!(back, [at as u8 + 1; BLOCK], "block {at}");
    }
}

#[test]
fn a_read_that_fails_is_reported() {
    let disk = Disk::new(1 << 20);
    let server = disk.serve("rerror=report", &["--fault", "read@2:eio"]);
    let mut guest = Blk::connect(server.socket(), options()).unwrap();
    let statuses: Vec<u8> = (0..3).map(|at| status(guest.read(at * 8, &mut [0; BLOCK]))).collect();
    assert_eq!(statuses, [0, 1, 0]);
}

/// The kernel forgets the pages whose write-back failed: a flush that "succeeds" afterwards would be a lie.
#[test]
fn after_a_flush_that_failed_no_flush_succeeds() {
    for policy in ["werror=report", "werror=stop"] {
        let disk = Disk::new(1 << 20);
        let server = disk.serve(policy, &["--fault", "flush@2:eio"]);
        let mut guest = Blk::connect(server.socket(), options()).unwrap();
        guest.write(0, &[1; BLOCK]).unwrap();
        guest.flush().unwrap();
        guest.write(8, &[2; BLOCK]).unwrap();
        for _ in 0..3 {
            assert_eq!(status(guest.flush()), 1, "{policy}");
        }
    }
}

#[test]
fn a_write_that_is_held_completes_when_the_operator_resumes_and_nothing_before_that() {
    let disk = Disk::new(1 << 20);
    let server = disk.serve("werror=stop", &["--fault", "write@4:eio"]);
    let mut guest =
        Blk::connect(server.socket(), Options { timeout: Duration::from_secs(5), ..options() }).unwrap();
    for at in 0..3 {
        guest.write(at * 8, &[at as u8 + 1; BLOCK]).unwrap();
    }
    let held = guest.submit(0, Request::Write { sector: 24, data: Payload::Bytes(&[4; BLOCK]) }).unwrap();
    guest.session_mut().kick(0).unwrap();
    let until = Instant::now() + Duration::from_millis(300);
    while Instant::now() < until {
        assert_eq!(guest.poll(0).unwrap(), None, "a held request came back");
        std::thread::sleep(Duration::from_millis(5));
    }
    disk.ctl(&["resume"]);
    assert!(guest.wait_for(held).unwrap().is_ok());
    guest.flush().unwrap();
    let mut back = [0; BLOCK];
    guest.read(24, &mut back).unwrap();
    assert_eq!(back, [4; BLOCK]);
}

/// A file system with too little room for the image, which is sparse.
#[test]
fn a_full_file_system_holds_the_write_until_there_is_room_or_reports_it() {
    let Some(full) = serving::SmallFs::mount(4 << 20) else {
        eprintln!("not shown: only root can mount a file system to fill");
        return;
    };
    let ballast = full.path().join("ballast");
    std::fs::write(&ballast, vec![1; 2 << 20]).unwrap();
    for policy in ["werror=enospc", "werror=report"] {
        let disk = Disk::within(full.path(), 8 << 20);
        let server = disk.serve(policy, &[]);
        let mut guest = Blk::connect(server.socket(), options()).unwrap();
        let mut shadow = Shadow::new(8 << 20, BLOCK);
        let failed = (0..1024_u64).find(|&at| {
            let block = shadow.next(at as usize);
            let ticket =
                guest.submit(0, Request::Write { sector: at * 8, data: Payload::Bytes(&block) }).unwrap();
            guest.session_mut().kick(0).unwrap();
            let until = Instant::now() + Duration::from_secs(1);
            while Instant::now() < until {
                if let Some(done) = guest.poll(0).unwrap() {
                    assert_eq!(done.ticket, ticket);
                    if done.is_ok() {
                        shadow.acknowledge(at as usize);
                    }
                    return !done.is_ok();
                }
                std::thread::yield_now();
            }
            true
        });
        assert!(failed.is_some(), "{policy}: 8 MiB fitted into what is left of 4 MiB");
        if policy == "werror=enospc" {
            assert_eq!(guest.session().in_flight(0), 1, "the write is held, not refused");
            std::fs::remove_file(&ballast).unwrap();
            disk.ctl(&["resume"]);
            assert!(guest.wait(0).unwrap().is_ok());
            shadow.acknowledge(failed.unwrap() as usize);
            std::fs::write(&ballast, vec![1; 2 << 19]).unwrap();
        } else {
            assert_eq!(guest.session().in_flight(0), 0, "the write is refused, not held");
        }
        shadow.verify(&mut guest);
    }
}

/// The server is killed in the middle of writes and starts again, over and over; the client does what QEMU does. Every request
/// comes back exactly once (the client checks that), and what was acknowledged is there.
#[test]
fn a_server_that_is_killed_loses_nothing_and_repeats_nothing_that_the_guest_sees() {
    const BYTES: usize = 4 << 20;
    let rounds =
        std::env::var("KILL_ROUNDS").map_or(20, |rounds| rounds.parse().expect("a number of rounds"));
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().expect("a seed"));
    eprintln!("SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let disk = Disk::new(BYTES as u64);
    let mut server = disk.serve("", &[]);
    let mut guest = Blk::connect(server.socket(), options()).unwrap();
    let mut shadow = Shadow::new(BYTES, BLOCK);
    let mut under_way = std::collections::HashMap::new();
    for round in 0..rounds {
        let requests = random.usize(1..400);
        for _ in 0..requests {
            // One writer for a block at a time: the order of two would be anybody's guess.
            let block = random.usize(..BYTES / BLOCK);
            let busy = under_way.values().any(|&other| other == Some(block));
            let request = if busy || random.u8(..16) == 0 { None } else { Some(block) };
            let ticket = match request {
                Some(block) => {
                    let data = shadow.next(block);
                    let sector = (block * BLOCK / 512) as u64;
                    guest.submit(0, Request::Write { sector, data: Payload::Bytes(&data) }).unwrap()
                }
                None => guest.submit(0, Request::Flush).unwrap(),
            };
            under_way.insert(ticket, request);
            if under_way.len() >= 32 {
                let done = guest.wait(0).unwrap();
                assert!(done.is_ok(), "round {round}: a request failed");
                if let Some(block) = under_way.remove(&done.ticket).expect("a request comes back once") {
                    shadow.acknowledge(block);
                }
            }
        }
        guest.session_mut().kick(0).unwrap();
        server.kill();
        // What was published before the end counts.
        while let Some(done) = guest.poll(0).unwrap() {
            assert!(done.is_ok(), "round {round}: a request failed");
            if let Some(block) = under_way.remove(&done.ticket).expect("a request comes back once") {
                shadow.acknowledge(block);
            }
        }
        server = disk.serve("", &[]);
        guest.session_mut().reconnect().unwrap();
        while !under_way.is_empty() {
            let done = guest.wait(0).unwrap_or_else(|error| panic!("round {round}: {error}"));
            assert!(done.is_ok(), "round {round}: a request failed");
            if let Some(block) = under_way.remove(&done.ticket).expect("a request comes back once") {
                shadow.acknowledge(block);
            }
        }
        shadow.verify(&mut guest);
    }
    assert!(server.runs());
}

#[test]
fn a_client_that_vanishes_leaves_a_clean_device_to_the_next() {
    let disk = Disk::new(1 << 20);
    let mut server = disk.serve("", &["--fault", "write:5ms"]);
    let mut shadow = Shadow::new(1 << 20, BLOCK);
    for round in 0..10 {
        let mut guest = Blk::connect(server.socket(), options()).unwrap();
        for at in 0..20 {
            let data = shadow.next(at);
            guest.submit(0, Request::Write { sector: at as u64 * 8, data: Payload::Bytes(&data) }).unwrap();
        }
        guest.session_mut().kick(0).unwrap();
        drop(guest);
        // Requests of the one before have ended, or have no effect: this one's are not overtaken.
        let mut next = Blk::connect(server.socket(), options()).unwrap();
        for at in 0..20 {
            let data = shadow.next(at);
            next.write(at as u64 * 8, &data).unwrap();
            shadow.acknowledge(at);
        }
        std::thread::sleep(Duration::from_millis(20));
        shadow.verify(&mut next);
        assert_eq!(next.session().counts(0).completed, next.session().counts(0).submitted, "round {round}");
    }
    assert!(server.runs());
}

/// The memory table is sent again and again while requests run, with a region more and without it.
#[test]
fn the_memory_table_changes_under_load_and_no_request_is_lost() {
    let disk = Disk::new(1 << 20);
    let server = disk.serve("", &[]);
    let mut guest = Blk::connect(server.socket(), options()).unwrap();
    let mut shadow = Shadow::new(1 << 20, BLOCK);
    for round in 0..100 {
        let mut under_way = std::collections::HashMap::new();
        for at in 0..32 {
            let data = shadow.next(at);
            let request = Request::Write { sector: at as u64 * 8, data: Payload::Bytes(&data) };
            under_way.insert(guest.submit(0, request).unwrap(), at);
        }
        guest.session_mut().kick(0).unwrap();
        guest.session_mut().share_memory(round % 2 == 0).unwrap();
        while !under_way.is_empty() {
            let done = guest.wait(0).unwrap();
            assert!(done.is_ok(), "round {round}");
            shadow.acknowledge(under_way.remove(&done.ticket).expect("a request comes back once"));
        }
    }
    shadow.verify(&mut guest);
}
