//! What a guest's reads cost over our AHCI, which is another process, and over the emulator's own, in one boot of one guest.
//!
//! ```text
//! cargo bench -p host-std --features guests --bench ahci_guest                   medians of alternated runs, and their ratios
//! cargo bench -p host-std --features guests --bench ahci_guest -- --rounds 21    more of them
//! ```
//!
//! Two images with the same content, one behind `blk-host serve --device ahci --vfio-user`, the other behind `ich9-ahci` of the
//! same QEMU. Linux drives both with the same driver; its agent times reads, with O_DIRECT but for the first row. A ratio above
//! 1 says that ours is quicker. The last row is what is between the two: a look at a register, which Linux's interrupt handler
//! takes twice, is a message to another process and its answer.

#[allow(dead_code, reason = "shared with the guest tests")]
#[path = "../../tests/guests/cache.rs"]
mod cache;
#[allow(dead_code, unused_imports, reason = "shared with the guest tests")]
#[path = "../../tests/guests/guest.rs"]
mod guest;
#[allow(dead_code, reason = "shared with the guest tests")]
#[path = "../../tests/guests/machine.rs"]
mod machine;
#[allow(dead_code, reason = "shared with the guest tests")]
#[path = "../../tests/guests/server.rs"]
mod server;

use std::time::Duration;

use clap::Parser;
use guest::{Boot, Front, Guest};
use server::{Serve, Server};

/// Prints a line at once.
macro_rules! say {
    ($($arg:tt)*) => { eprintln!("ahci_guest: {}", format_args!($($arg)*)) };
}
pub(crate) use say;

/// Compares our AHCI with the emulator's, in a guest.
#[derive(Debug, Parser)]
struct Args {
    /// Runs of each row, on each device.
    #[arg(long, value_name = "N", default_value_t = 9)]
    rounds: usize,
    /// Only rows that have this in their names, as "writeback" or "4 KiB".
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Fail if a ratio is below this.
    #[arg(long, value_name = "RATIO")]
    at_least: Option<f64>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

const BYTES: u64 = 64 << 20;

/// What is timed, and how the agent takes it; the device goes in the middle.
type Row = (&'static str, &'static str, &'static str);

const LOOKS: &str = "2,000 looks at a register";

const ROWS: [Row; 6] = [
    ("64 MiB through the page cache", "stream", "67108864 1048576"),
    ("64 MiB directly, 1 MiB each", "time", "67108864 1048576 1"),
    ("64 MiB directly, 128 KiB each", "time", "67108864 131072 1"),
    ("2,000 of 4 KiB here and there", "scatter", "2000 4096 1 7"),
    ("2,000 of 4 KiB, 32 at a time", "scatter", "2000 4096 32 7"),
    (LOOKS, "looks", "2000"),
];

fn main() {
    let args = Args::parse();
    let mut worst = f64::INFINITY;
    println!("{:13}{:32}{:>12}{:>12}{:>8}", "host cache", "reads", "blk-host", "QEMU's own", "ratio");
    for (cache, drive) in [("none", "cache=none,aio=native"), ("writeback", "cache=writeback")] {
        let rows: Vec<_> =
            ROWS.iter().filter(|row| format!("{cache} {}", row.0).contains(&args.only)).collect();
        if rows.is_empty() {
            continue;
        }
        for (row, ours, theirs, ratio) in compare(cache, drive, &rows, args.rounds) {
            println!("{cache:13}{row:32}{ours:9.1} ms{theirs:9.1} ms{ratio:8.2}");
            if row != LOOKS {
                worst = worst.min(ratio);
            }
        }
    }
    if let Some(least) = args.at_least.filter(|&least| worst < least) {
        eprintln!("ahci_guest: the ratio {worst:.2} is below {least:.2}");
        std::process::exit(1);
    }
}

/// For each row: its name, the medians in milliseconds, and the median of the ratios of neighbours.
fn compare(
    cache: &'static str,
    drive: &str,
    rows: &[&Row],
    rounds: usize,
) -> Vec<(&'static str, f64, f64, f64)> {
    let server = Server::start(Serve::new(Front::Ahci, cache, BYTES));
    let folder = tempfile::Builder::new().prefix("peer").tempdir_in(env!("CARGO_TARGET_TMPDIR"));
    let folder = folder.expect("a folder");
    let peer = folder.path().join("image");
    std::fs::File::create_new(&peer).and_then(|file| file.set_len(BYTES)).expect("an image");
    let (socket, drive) = (server.socket(), format!("file={},{drive}", peer.display()));
    // Registers may be mapped by a process although a driver has them.
    let arguments = "iomem=relaxed";
    let boot =
        Boot { peer: Some(&drive), arguments, ..Boot::new(Front::Ahci.machine(), Front::Ahci, &socket) };
    let mut guest = Guest::boot(&boot);
    guest.sh("n=0; until test -b /dev/sdb || test $n = 100; do sleep 0.1; n=$((n+1)); done");
    let mut disk = |slot: u32| {
        guest.sh(&format!(
            "for d in sda sdb; do readlink -f /sys/block/$d | grep -q :0{slot}.0/ && echo /dev/$d; done; true"
        ))
    };
    let disks = [disk(5), disk(6)].map(|disk| disk.trim().to_owned());
    assert!(disks.iter().all(|disk| !disk.is_empty()) && disks[0] != disks[1], "two disks: {disks:?}");
    for disk in &disks {
        let compared =
            guest.sh_within(&format!("agent compare {disk} {BYTES} 131072 8 7"), Duration::from_secs(600));
        assert_eq!(compared, format!("=COMPARED {BYTES} 0"), "the same content on both");
    }
    let mut time = |row: &Row, disk: &str| -> f64 {
        let (_, what, how) = row;
        let printed = guest.sh(&format!("agent {what} {disk} {how}"));
        let micros = printed.strip_prefix("=TOOK ").and_then(|micros| micros.parse().ok());
        micros.unwrap_or_else(|| panic!("{printed}"))
    };
    let mut results = Vec::new();
    for row in rows {
        let mut samples = [vec![], vec![], vec![]];
        for round in 0..=rounds {
            let (ours, theirs) = if round % 2 == 0 {
                let ours = time(row, &disks[0]);
                (ours, time(row, &disks[1]))
            } else {
                let theirs = time(row, &disks[1]);
                (time(row, &disks[0]), theirs)
            };
            // The first warms up.
            if round > 0 {
                for (all, sample) in samples.iter_mut().zip([ours / 1e3, theirs / 1e3, theirs / ours]) {
                    all.push(sample);
                }
            }
        }
        let [ours, theirs, ratio] = samples.map(median);
        results.push((row.0, ours, theirs, ratio));
    }
    guest.power_off();
    results
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().expect("a sample")
}
