//! Limits of rate, as a guest and an operator meet them: `blk-host serve` in a process of its own.

mod serving;

use std::time::{Duration, Instant};

use host_std::testing::client::{Blk, Options, Payload, Request};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use serving::{Disk, Server};
use vhost::vhost_user::VhostUserFrontend as _;

const BLOCK: u32 = 4096;
/// What must not wait for a limit takes less, also on a machine that is busy; what waits takes longer.
const AT_ONCE: Duration = Duration::from_secs(3);

fn options(queues: u16) -> Options {
    Options { queues, transfer_bytes: 256 << 10, segment_bytes: 256 << 10, ..Options::default() }
}

fn write(bytes: u32) -> Request<'static> {
    Request::Write { sector: 0, data: Payload::Whatever(bytes) }
}

fn submit(guest: &mut Blk, queue: u16, count: u32, request: Request<'_>) {
    for _ in 0..count {
        guest.submit(queue, request).unwrap();
    }
    guest.session_mut().kick(queue).unwrap();
}

/// Completions so far of a queue; each has succeeded.
fn ended(guest: &mut Blk, queue: u16) -> u32 {
    let mut count = 0;
    while let Some(done) = guest.poll(queue).unwrap() {
        assert!(done.is_ok());
        count += 1;
    }
    count
}

/// Keeps a queue `depth` deep for a time, and returns what was done in it.
fn keep_busy(guest: &mut Blk, queue: u16, depth: u32, time: Duration, request: Request<'_>) -> u32 {
    let until = Instant::now() + time;
    submit(guest, queue, depth, request);
    let mut count = 0;
    while Instant::now() < until {
        let more = ended(guest, queue);
        count += more;
        if more != 0 {
            submit(guest, queue, more, request);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    count
}

fn throttle(disk: &Disk) -> Value {
    disk.stats()["images"][0]["throttle"].clone()
}

/// The processor time of all threads of the server.
fn cpu(server: &Server) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.id())).unwrap();
    let ns = tasks.map(|task| {
        let schedstat = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
        schedstat.split(' ').next().unwrap().parse::<u64>().unwrap()
    });
    Duration::from_nanos(ns.sum())
}

/// Waits until the server says that so many requests are held, and nothing of them is done.
fn until_held(disk: &Disk, count: u64) {
    let start = Instant::now();
    while throttle(disk)["held"] != count {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", throttle(disk));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_guest_gets_its_operations_and_none_more_and_the_server_sleeps_meanwhile() {
    let disk = Disk::new(1 << 20);
    let server = disk.serve("iops=200,iops-burst=20", &[]);
    let mut guest = Blk::connect(server.socket(), options(1)).unwrap();
    let (before, start) = (cpu(&server), Instant::now());
    let count = keep_busy(&mut guest, 0, 64, Duration::from_millis(1500), write(BLOCK));
    let (used, time) = (cpu(&server) - before, start.elapsed());
    let most = 20 + (200 * time.as_millis() as u32) / 1000 + 1;
    assert!(count <= most, "{count} in {time:?}");
    assert!(count >= 100, "20 at once and 300 in 1.5 s, less what a busy machine costs: {count}");
    assert!(used < time / 8, "{used:?} of {time:?}");
    let stats = throttle(&disk);
    assert_eq!(
        (&stats["iops"], &stats["iops_burst"], &stats["bps"]),
        (&json!(200), &json!(20), &json!(null))
    );
    let delayed = stats["delayed"].as_u64().unwrap();
    assert!(delayed + 20 >= count.into() && stats["held"].as_u64().unwrap() >= 50, "{stats}");
    assert!(stats["delayed_ns"].as_u64().unwrap() / delayed > 50_000_000, "64 deep at 5 ms each: {stats}");
}

#[test]
fn a_burst_that_has_accumulated_goes_at_once_and_no_second_one() {
    let disk = Disk::new(1 << 20);
    let server = disk.serve("iops=20,iops-burst=100", &[]);
    let mut guest = Blk::connect(server.socket(), options(1)).unwrap();
    let start = Instant::now();
    submit(&mut guest, 0, 100, write(BLOCK));
    for _ in 0..100 {
        assert!(guest.wait(0).unwrap().is_ok());
    }
    assert!(start.elapsed() < AT_ONCE, "{:?}; five seconds at the rate", start.elapsed());
    let count = keep_busy(&mut guest, 0, 100, Duration::from_millis(500), write(BLOCK));
    let most = 20 * start.elapsed().as_millis() / 1000 + 1;
    assert!(u128::from(count) <= most, "{count}, {most} may be");
}

#[test]
fn bytes_are_limited_over_all_queues_and_a_request_larger_than_the_burst_is_served() {
    let disk = Disk::new(1 << 20);
    let server = disk.serve("bps=1M,bps-burst=4K,queues=2", &[]);
    let mut guest = Blk::connect(server.socket(), options(2)).unwrap();
    let start = Instant::now();
    // 1 MiB and a little: the last one begins when the others have been paid for, but for the burst. It may be a large one, as
    // the queues' turns are not those of their requests.
    for queue in [0, 1] {
        submit(&mut guest, queue, 2, write(256 << 10));
    }
    submit(&mut guest, 1, 1, write(512));
    for queue in [0, 0, 1, 1, 1] {
        assert!(guest.wait(queue).unwrap().is_ok());
    }
    let time = start.elapsed();
    assert!(time >= Duration::from_millis(740), "{time:?}");
    assert!(time < Duration::from_secs(3), "{time:?}");
}

#[test]
fn a_stop_does_not_wait_for_hundreds_of_requests_that_are_held() {
    let disk = Disk::new(1 << 20);
    let mut server = disk.serve("iops=1,bps=1K,queues=4", &[]);
    let mut guest = Blk::connect(server.socket(), options(4)).unwrap();
    (0..4).for_each(|queue| submit(&mut guest, queue, 100, write(BLOCK)));
    until_held(&disk, 399);
    let start = Instant::now();
    kill_process(Pid::from_raw(server.id().cast_signed()).unwrap(), Signal::TERM).unwrap();
    while server.runs() {
        assert!(start.elapsed() < AT_ONCE, "it waits for its limits");
        std::thread::sleep(Duration::from_millis(2));
    }
    let done: u32 = (0..4).map(|queue| ended(&mut guest, queue)).sum();
    assert_eq!(done, 400, "each was done, and its guest told");
}

#[test]
fn a_reset_a_stopped_ring_and_a_client_that_goes_wait_for_no_limit_but_are_counted() {
    let disk = Disk::new(1 << 20);
    let server = disk.serve("iops=2,iops-burst=1", &[]);
    let mut guest = Blk::connect(server.socket(), options(1)).unwrap();
    let mut held = 99;
    for way in ["reset", "stop", "leave"] {
        submit(&mut guest, 0, 100, write(BLOCK));
        until_held(&disk, held);
        let start = Instant::now();
        match way {
            "reset" => guest.session_mut().message(|frontend| frontend.reset_device()).unwrap(),
            "stop" => drop(guest.session_mut().stop_ring(0).unwrap()),
            _ => guest.session_mut().disconnect(),
        }
        if way == "leave" {
            // The next one is served when the images are at rest.
            guest = Blk::connect(server.socket(), options(1)).unwrap();
        } else {
            assert_eq!(ended(&mut guest, 0), 100, "{way}");
            guest.session_mut().restart_driver().unwrap();
        }
        assert!(start.elapsed() < AT_ONCE, "{way}: {:?}", start.elapsed());
        // What was let go has to be paid for: no life of the device begins with a burst.
        held = 100;
    }
    assert_eq!(throttle(&disk)["held"], 0);
    submit(&mut guest, 0, 1, write(BLOCK));
    until_held(&disk, 1);
}

#[test]
fn an_operator_changes_the_limits_of_an_image_that_is_served() {
    let disk = Disk::new(1 << 20);
    let server = disk.serve("iops=0", &[]);
    let mut guest = Blk::connect(server.socket(), options(1)).unwrap();
    let free = keep_busy(&mut guest, 0, 32, Duration::from_millis(300), write(BLOCK));
    assert!(free > 320, "no limit yet: {free}");
    let text = disk.ctl(&["throttle", "iops=100", "bps=10M"]);
    assert!(text.contains("operations: 100 a second, 10 at once"), "{text}");
    assert!(text.contains("bytes: 10.00 MiB a second, 1.00 MiB at once"), "{text}");
    ended(&mut guest, 0);
    let start = Instant::now();
    let count = keep_busy(&mut guest, 0, 32, Duration::from_millis(500), write(BLOCK));
    let most = 10 + 32 + 100 * start.elapsed().as_millis() / 1000 + 1;
    assert!(u128::from(count) <= most, "{count}, {most} may be");
    assert!(disk.ctl(&["stats"]).contains("operations: 100 a second"));
    // What is held goes, too.
    disk.ctl(&["throttle", "--image", "0", "iops=0", "bps=0"]);
    until_held(&disk, 0);
    let free = keep_busy(&mut guest, 0, 32, Duration::from_millis(300), write(BLOCK));
    assert!(free > 320, "no limit any more: {free}");
}

#[test]
fn the_operator_s_drain_waits_for_no_limit() {
    let disk = Disk::new(1 << 20);
    let server = disk.serve("iops=1", &[]);
    let mut guest = Blk::connect(server.socket(), options(1)).unwrap();
    submit(&mut guest, 0, 100, write(BLOCK));
    until_held(&disk, 99);
    let start = Instant::now();
    disk.ctl(&["drain"]);
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    assert_eq!(ended(&mut guest, 0), 100);
    drop(server);
}
