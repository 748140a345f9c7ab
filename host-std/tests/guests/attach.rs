//! Guests boot with our disk, see the cache that is there, switch it, and read back what they wrote.

mod cloud_hypervisor;
mod printed;

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::guest::{Boot, Front, Guest, Machine};
use crate::server::{Serve, Server};
use crate::{full, say};

/// Whatever the mode, the guest is told the truth about the cache.
fn truth(machine: Machine, front: Front) {
    for (cache, expected) in [("writeback", "write back"), ("directsync", "write through")] {
        let server = Server::start(Serve::new(front, cache, 64 << 20));
        let mut guest = Guest::boot(&Boot::new(machine, front, &server.socket()));
        let write_cache = guest.cat(&format!("/sys/block/{}/queue/write_cache", front.disk()));
        assert_eq!(write_cache, expected, "{} on {}, {cache}", front.name(), machine.name());
        if cache == "writeback" {
            switch(&server, &mut guest, front);
        }
        guest.power_off();
        let (status, _) = server.stop();
        assert!(status.success(), "{status}");
    }
    say!("{:11} on {}: sees the cache that there is, and switches it", front.name(), machine.name());
}

/// The name of the file with which a guest switches the cache.
fn cache_type(guest: &mut Guest, front: Front) -> String {
    if front.is_blk() {
        "/sys/block/vda/cache_type".into()
    } else {
        guest.sh("echo /sys/class/scsi_disk/*/cache_type")
    }
}

/// Writes sector by sector, and counts what the host makes of it: flushes, and writes that are stable by themselves.
fn made_stable(server: &Server, guest: &mut Guest, front: Front, version: u32) -> u64 {
    let durable = |server: &Server| {
        let host = &server.stats()["images"][0]["host"];
        ["fdatasync_calls", "dsync_writes", "fua_writes"]
            .into_iter()
            .map(|count| host[count].as_u64().expect("a count"))
            .sum::<u64>()
    };
    let before = durable(server);
    for sector in 0..8 {
        guest.sh(&format!("agent one /dev/{} {sector} {version}", front.disk()));
    }
    durable(server) - before
}

fn switch(server: &Server, guest: &mut Guest, front: Front) {
    let file = cache_type(guest, front);
    assert_eq!(guest.cat(&file), "write back");
    assert_eq!(made_stable(server, guest, front, 1), 0, "nothing is made stable unasked");
    guest.sh(&format!("echo 'write through' >{file}"));
    assert_eq!(guest.cat(&file), "write through");
    let queue = format!("/sys/block/{}/queue/write_cache", front.disk());
    assert_eq!(guest.cat(&queue), "write through");
    assert!(made_stable(server, guest, front, 2) >= 8, "each write is stable");
    guest.sh(&format!("echo 'write back' >{file}"));
    assert_eq!(guest.cat(&queue), "write back");
    assert_eq!(made_stable(server, guest, front, 3), 0, "nothing is made stable unasked");
}

#[test]
fn attach_uml_blk() {
    truth(Machine::Uml, Front::Blk);
}

#[test]
fn attach_uml_scsi() {
    truth(Machine::Uml, Front::Scsi);
}

#[test]
fn attach_qemu7_blk() {
    truth(Machine::Qemu7, Front::Blk);
}

#[test]
fn attach_qemu7_scsi() {
    truth(Machine::Qemu7, Front::Scsi);
}

#[test]
fn attach_qemu11_blk() {
    truth(Machine::Qemu11, Front::Blk);
}

#[test]
fn attach_qemu11_scsi() {
    truth(Machine::Qemu11, Front::Scsi);
}

/// 32 requests in flight over four queues, every byte read back. The statistics add up to what the guest did.
fn compare(machine: Machine, front: Front, bytes: u64) {
    let begin = Instant::now();
    let queues = if machine == Machine::Uml { 1 } else { 4 };
    let server = Server::start(Serve { queues, ..Serve::new(front, "none", bytes) });
    let mut guest = Guest::boot(&Boot { processors: queues, ..Boot::new(machine, front, &server.socket()) });
    let disk = front.disk();
    assert_eq!(guest.sh(&format!("ls /sys/block/{disk}/mq | wc -l")).trim(), queues.to_string(), "queues");
    // A machine's firmware reads the disk as well, of which the kernel knows nothing.
    let stats = server.stats();
    let before = (Done::by_guest(&mut guest, front), Done::by_server(&stats));
    let compare = format!("agent compare /dev/{disk} {bytes} 16384 32 7");
    let output = guest.sh_within(&compare, Duration::from_secs(1800));
    assert_eq!(output, format!("=COMPARED {bytes} 0"));
    let stats = server.stats();
    let by_guest = Done::by_guest(&mut guest, front).since(&before.0);
    assert_eq!(Done::by_server(&stats).since(&before.1), by_guest, "the server's and the guest's; {stats}");
    assert_eq!((by_guest.read_bytes, by_guest.written_bytes, by_guest.flushes), (bytes, bytes, 1));
    let printed: Value = serde_json::from_str(&server.ctl(&["stats", "--json"])).expect("JSON");
    let device = printed.get("devices").map_or(&printed, |devices| &devices[0]);
    assert_eq!(device["images"][0]["host"]["bytes_written"], bytes, "{printed}");
    guest.power_off();
    let (status, _) = server.stop();
    assert!(status.success(), "{status}");
    let mib = bytes >> 20;
    say!("{:11} on {}: {mib} MiB compared, {} s", front.name(), machine.name(), begin.elapsed().as_secs());
}

/// What was done to the disk, as the guest and the server count it.
#[derive(Debug, PartialEq)]
struct Done {
    reads: u64,
    read_bytes: u64,
    writes: u64,
    written_bytes: u64,
    flushes: u64,
}

impl Done {
    /// Documentation/block/stat.rst: reads, their merges and sectors; writes, theirs; discards; flushes at 15. To Linux, a
    /// flush for which there is nothing to write is an empty write too (`blkdev_issue_flush`).
    fn by_guest(guest: &mut Guest, front: Front) -> Self {
        let stat = guest.cat(&format!("/sys/block/{}/stat", front.disk()));
        let stat: Vec<u64> =
            stat.split_whitespace().map(|number| number.parse().expect("a number")).collect();
        Self {
            reads: stat[0],
            read_bytes: stat[2] * 512,
            writes: stat[4] - stat[15],
            written_bytes: stat[6] * 512,
            flushes: stat[15],
        }
    }

    fn by_server(stats: &Value) -> Self {
        let queues = stats["server"]["queues"].as_array().expect("queues");
        let sum = |count: &str| queues.iter().map(|queue| queue[count].as_u64().expect("a count")).sum();
        assert_eq!(sum("errors"), 0, "errors");
        Self {
            reads: sum("reads"),
            read_bytes: sum("read_bytes"),
            writes: sum("writes"),
            written_bytes: sum("written_bytes"),
            flushes: sum("flushes"),
        }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            reads: self.reads - before.reads,
            read_bytes: self.read_bytes - before.read_bytes,
            writes: self.writes - before.writes,
            written_bytes: self.written_bytes - before.written_bytes,
            flushes: self.flushes - before.flushes,
        }
    }
}

#[test]
fn compare_uml_blk() {
    compare(Machine::Uml, Front::Blk, if full() { 1 << 30 } else { 64 << 20 });
}

#[test]
fn compare_qemu11_blk() {
    compare(Machine::Qemu11, Front::Blk, if full() { 1 << 30 } else { 32 << 20 });
}

#[test]
fn compare_qemu11_scsi() {
    compare(Machine::Qemu11, Front::Scsi, if full() { 1 << 30 } else { 32 << 20 });
}

#[test]
fn resize_reaches_the_guest() {
    for front in [Front::Blk, Front::Scsi, Front::BlkPci, Front::ScsiPci] {
        let server = Server::start(Serve::new(front, "writeback", 64 << 20));
        let mut guest = Guest::boot(&Boot::new(front.machine(), front, &server.socket()));
        let size = format!("/sys/block/{}/size", front.disk());
        assert_eq!(guest.cat(&size), (64_u64 << 11).to_string());
        server.ctl(&["resize", "96M"]);
        let wait = format!(
            "n=0; until test $(cat {size}) = {} || test $n = 50; do sleep 0.1; n=$((n+1)); done",
            96 << 11
        );
        guest.sh(&wait);
        assert_eq!(guest.cat(&size), (96_u64 << 11).to_string(), "{}", front.name());
        let last = (96_u64 << 11) - 1;
        guest.sh(&format!("agent one /dev/{} {last} 1", front.disk()));
        assert_eq!(guest.sh(&format!("agent read /dev/{} {last}", front.disk())), format!("=HOLDS {last} 1"));
        guest.power_off();
        say!("{:11}: a resize reaches the running guest", front.name());
    }
}
