//! What a request costs: the instructions and the time from a guest's bytes to its completion, through each front.
//!
//! `cargo bench -p host-std` prints the table, `cargo bench -p host-std -- --json` the same as JSON; `-- AHCI none`
//! prints the rows of fronts with that in their name, or over that storage. With no
//! storage below (one that completes at once and moves nothing) a row is the model's own cost; over the RAM disk it
//! includes the copy. "32 at once": a poll finds 32 requests in the ring, or one write issues 32 commands; "one by one": 32 are
//! issued, each by itself as Linux does, before one interrupt; elsewhere it is one request.
//!
//! Instructions are counted by valgrind's callgrind, in this program run once more for each row, only between the calls
//! that a guest's access or notification leads to: no set-up, no driver. (The benchmark crates of the field either
//! measure time only, or need a runner of the same version installed beside valgrind.) Times are medians of batches.

mod ahci;
mod front;
mod ide;
mod null;
mod scsi;
mod virtio_blk;
mod virtio_scsi;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use ata_model::Hba;
use blk_core::ram::{Ram, RamDisk};
use blk_core::storage::{Cache, Storage};
use blk_core::units::GuestAddr;
use front::Front;
use host_std::memory::MappedMemory;
use null::Null;
use serde_json::json;

/// Slots of each front, and of each storage.
pub(crate) const DEPTH: usize = 64;
const MEMORY_BYTES: usize = 1 << 20;
const DISK_BYTES: usize = 1 << 20;
const STAGING_BYTES: usize = 1 << 16;

/// Requests that callgrind counts at least, after a tenth of them that it does not.
const COUNTED: u32 = 512;
const BATCHES: usize = 41;
const BATCH_TIME: Duration = Duration::from_millis(1);

/// What a guest repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    Write,
    Flush,
}

impl Operation {
    const ALL: [Self; 3] = [Self::Read, Self::Write, Self::Flush];

    const fn name(self) -> &'static str {
        match self {
            Self::Read => "4 KiB read",
            Self::Write => "4 KiB write",
            Self::Flush => "flush",
        }
    }
}

/// What is under a front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Below {
    /// Nothing: every operation is done at once.
    Null,
    /// Nothing, and every operation is in flight until the next poll.
    Later,
    Ram,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
struct Case {
    front: &'static str,
    below: Below,
    operation: Operation,
}

const FRONTS: [&str; 16] = [
    "virtio-blk",
    "virtio-blk, 32 at once",
    "virtio-blk PCI",
    "virtio-blk PCI, 32 at once",
    "SCSI",
    "virtio-scsi",
    "virtio-scsi, 32 at once",
    "IDE DMA",
    "IDE PIO",
    "IDE PIO, strings",
    "AHCI DMA",
    "AHCI NCQ",
    "AHCI NCQ, 32 at once",
    "AHCI NCQ, 32 one by one",
    "AHCI NCQ PCI, 32 at once",
    "AHCI NCQ PCI, 32 one by one",
];

impl Case {
    fn all() -> impl Iterator<Item = Self> {
        let rows = FRONTS
            .iter()
            .flat_map(|front| [Below::Null, Below::Later, Below::Ram].map(|below| (*front, below)));
        let rows =
            rows.flat_map(|(front, below)| Operation::ALL.map(|operation| Self { front, below, operation }));
        // There is no queued flush.
        rows.filter(|row| row.operation != Operation::Flush || !row.front.starts_with("AHCI NCQ"))
    }

    /// Runs the row in one of the two ways.
    fn run<R>(self, how: impl How<R>) -> R {
        let memory = MappedMemory::anonymous(&[(GuestAddr(0), MEMORY_BYTES)]).expect("guest memory");
        match self.below {
            Below::Null => self.over(how, &memory, Null::new(DISK_BYTES, STAGING_BYTES, true)),
            Below::Later => self.over(how, &memory, Null::new(DISK_BYTES, STAGING_BYTES, false)),
            Below::Ram => {
                let (mut bytes, mut staging) = (vec![0; DISK_BYTES], vec![0; DEPTH * STAGING_BYTES]);
                let ram = Ram::new(&mut bytes).with_cache(Cache::WriteBack);
                self.over(how, &memory, RamDisk::<DEPTH>::new(ram, &mut staging))
            }
        }
    }

    fn over<R, S: Storage<MappedMemory>>(self, how: impl How<R>, memory: &MappedMemory, storage: S) -> R {
        let mut storage = [storage];
        let operation = self.operation;
        let storage = &mut storage;
        macro_rules! run {
            ($front:ty) => {
                how.run(<$front>::new(operation, memory, storage), memory, storage)
            };
        }
        match self.front {
            "virtio-blk" => run!(virtio_blk::OverMmio<1>),
            "virtio-blk, 32 at once" => run!(virtio_blk::OverMmio<32>),
            "virtio-blk PCI" => run!(virtio_blk::OverPci<1>),
            "virtio-blk PCI, 32 at once" => run!(virtio_blk::OverPci<32>),
            "SCSI" => run!(scsi::Scsi),
            "virtio-scsi" => run!(virtio_scsi::VirtioScsi<1>),
            "virtio-scsi, 32 at once" => run!(virtio_scsi::VirtioScsi<32>),
            "IDE DMA" => run!(ide::IdeDma),
            "IDE PIO" => run!(ide::IdePio<false>),
            "IDE PIO, strings" => run!(ide::IdePio<true>),
            "AHCI DMA" => run!(ahci::Dma),
            "AHCI NCQ" => run!(ahci::Queued<Hba<1>, 1, 1>),
            "AHCI NCQ, 32 at once" => run!(ahci::Queued<Hba<1>, 32, 32>),
            "AHCI NCQ, 32 one by one" => run!(ahci::Queued<Hba<1>, 32, 1>),
            "AHCI NCQ PCI, 32 at once" => run!(ahci::Queued<ahci::PciHba, 32, 32>),
            "AHCI NCQ PCI, 32 one by one" => run!(ahci::Queued<ahci::PciHba, 32, 1>),
            front => unreachable!("no front {front}"),
        }
    }
}

/// What is done with a front that is up.
trait How<R> {
    fn run<S: Storage<MappedMemory>, F: Front<S>>(
        self,
        front: F,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> R;
}

/// Serves requests under callgrind.
struct Count;

impl How<()> for Count {
    fn run<S: Storage<MappedMemory>, F: Front<S>>(
        self,
        mut front: F,
        memory: &MappedMemory,
        storage: &mut [S],
    ) {
        for _ in 0..COUNTED / 10 {
            front.prepare(memory);
            front.serve(memory, storage);
        }
        for _ in 0..COUNTED / F::REQUESTS {
            front.prepare(memory);
            counted(&mut front, memory, storage);
        }
        front.check(memory);
    }
}

/// What callgrind counts, by this name.
#[inline(never)]
fn counted<S: Storage<MappedMemory>, F: Front<S>>(front: &mut F, memory: &MappedMemory, storage: &mut [S]) {
    front.serve(memory, storage);
}

/// Takes the time: nanoseconds for one request, the median of batches.
struct Time;

impl How<f64> for Time {
    fn run<S: Storage<MappedMemory>, F: Front<S>>(
        self,
        mut front: F,
        memory: &MappedMemory,
        storage: &mut [S],
    ) -> f64 {
        let mut batch = |rounds: u32| {
            let begun = Instant::now();
            for _ in 0..rounds {
                front.prepare(memory);
                front.serve(memory, storage);
            }
            begun.elapsed()
        };
        let mut rounds = 1;
        while batch(rounds) < BATCH_TIME {
            rounds *= 2;
        }
        let mut times: Vec<Duration> = (0..BATCHES).map(|_| batch(rounds)).collect();
        times.sort();
        front.check(memory);
        times[BATCHES / 2].as_nanos() as f64 / f64::from(rounds * F::REQUESTS)
    }
}

/// The instructions of one request of row `index`, if valgrind is there.
fn instructions(index: usize) -> Option<u64> {
    let this = std::env::current_exe().ok()?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
        .arg("--toggle-collect=*request_cost::counted*")
        .arg(this)
        .args(["--count", &index.to_string()])
        .output()
        .ok()?;
    let report = String::from_utf8_lossy(&output.stderr);
    let collected = report.lines().find_map(|line| line.split_once("Collected : "))?.1;
    let total: u64 = collected.trim().parse().ok()?;
    assert!(output.status.success() && total != 0, "callgrind found nothing to count:\n{report}");
    Some(total / u64::from(COUNTED))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let cases: Vec<Case> = Case::all().collect();
    if let [flag, index] = arguments.as_slice()
        && flag == "--count"
    {
        let index: usize = index.parse().expect("the number of a row");
        cases[index].run(Count);
        return ExitCode::SUCCESS;
    }
    let wanted = |case: &Case| {
        let mut names = arguments.iter().filter(|argument| !argument.starts_with("--"));
        names.all(|name| case.front.contains(name.as_str()) || case.below.name() == name)
    };
    let cases: Vec<(usize, Case)> = cases.into_iter().enumerate().filter(|(_, case)| wanted(case)).collect();
    let times: Vec<f64> = cases.iter().map(|(_, case)| case.run(Time)).collect();
    let counts: Vec<Option<u64>> = cases.iter().map(|&(index, _)| instructions(index)).collect();
    let rows = cases.iter().map(|(_, case)| case).zip(times).zip(counts);
    if arguments.iter().any(|argument| argument == "--json") {
        let rows: Vec<_> = rows
            .map(|((case, nanoseconds), instructions)| {
                json!({
                    "front": case.front,
                    "storage": case.below.name(),
                    "operation": case.operation.name(),
                    "instructions": instructions,
                    "nanoseconds": (nanoseconds * 10.0).round() / 10.0,
                })
            })
            .collect();
        println!("{}", json!(rows));
        return ExitCode::SUCCESS;
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["front", "storage", "request", "instructions", "ns"]);
    let mut counted = true;
    for ((case, nanoseconds), instructions) in rows {
        counted &= instructions.is_some();
        let instructions = instructions.map_or("-".to_owned(), |count| count.to_string());
        let nanoseconds = format!("{nanoseconds:.0}");
        table.add_row([case.front, case.below.name(), case.operation.name(), &instructions, &nanoseconds]);
    }
    println!("{table}");
    if !counted {
        println!(
            "No instructions: they are counted by valgrind (apt-get install valgrind), which is not there."
        );
    }
    ExitCode::SUCCESS
}

impl Below {
    const fn name(self) -> &'static str {
        match self {
            Self::Null => "none",
            Self::Later => "none, later",
            Self::Ram => "RAM disk",
        }
    }
}
