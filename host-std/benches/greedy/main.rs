//! The longest that a register read and `ctl` wait beside the greediest guest, and the memory that it makes the server use.
//!
//! ```text
//! cargo bench -p host-std --bench greedy                 every case, 5 s each
//! cargo bench -p host-std --bench greedy -- --quick      the same, 1 s each
//! cargo bench -p host-std --bench greedy -- --only ahci  the cases whose name contains this
//! ```
//!
//! The guest keeps every slot of its device full of the largest requests that the device takes, reads and writes in turn: 32 MiB
//! on AHCI, 256 MiB on virtio-blk. Its memory is shared, or kept by the client, which then hands it out by messages. Beside that it
//! reads a register, again and again, and an operator asks for statistics, and pauses and resumes the device.
//!
//! It fails if a register read or an answer of `ctl` takes 100 ms or more in each of three tries, or if the server's largest
//! resident memory exceeds its budget (an image that is recorded has only that limit): what the client shares, `private-memory`, and a fixed amount for the server itself.

mod guest;
mod report;
mod served;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use guest::{Ahci, Guest, VirtioBlk};
use report::{Measured, Report};
use served::{Operator, Served};

/// Measures how long others wait beside a greedy guest.
#[derive(Debug, Parser)]
struct Args {
    /// Shorter runs.
    #[arg(long)]
    quick: bool,
    /// Only cases whose name contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// A directory on tmpfs.
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    tmpfs: PathBuf,
    /// A directory on a disk.
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    disk: PathBuf,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A machine that is busy with other things delays a guest now and then, a server that is held up each time.
const TRIES: usize = 3;

/// The option that has an image recorded. It is to be followed by a path.
const RECORD: &str = ",record=";

/// A device, where its image is, and whose its memory is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) device: Device,
    pub(crate) place: Place,
    pub(crate) cache: &'static str,
    pub(crate) memory: Memory,
    /// Further options of the image.
    pub(crate) options: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    Ahci,
    VirtioBlk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Disk,
    Tmpfs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Both have it.
    Shared,
    /// Only the client has it.
    Kept,
}

impl Case {
    fn all() -> Vec<Self> {
        let mut cases = Vec::new();
        for device in [Device::Ahci, Device::VirtioBlk] {
            for place in [Place::Disk, Place::Tmpfs] {
                for cache in ["writeback", "none"] {
                    cases.push(Self { device, place, cache, memory: Memory::Shared, options: "" });
                }
            }
            for options in ["", ",private-memory=64M,inflight=64M"] {
                let (place, cache) = (Place::Disk, "writeback");
                cases.push(Self { device, place, cache, memory: Memory::Kept, options });
            }
            let (place, cache, options) = (Place::Tmpfs, "writeback", "");
            cases.push(Self { device, place, cache, memory: Memory::Kept, options });
            let (place, options) = (Place::Disk, RECORD);
            cases.push(Self { device, place, cache, memory: Memory::Shared, options });
        }
        cases
    }

    pub(crate) fn is_recorded(&self) -> bool {
        self.options == RECORD
    }

    pub(crate) fn name(&self) -> String {
        let device = match self.device {
            Device::Ahci => "ahci",
            Device::VirtioBlk => "virtio-blk-pci",
        };
        let place = match self.place {
            Place::Disk => "disk",
            Place::Tmpfs => "tmpfs",
        };
        let memory = match self.memory {
            Memory::Shared => "shared",
            Memory::Kept => "private",
        };
        format!("{device}, {place}, {}, {memory}{}", self.cache, self.options)
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("greedy: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let time = Duration::from_millis(if args.quick { 1000 } else { 5000 });
    let mut report = Report::default();
    for case in Case::all().into_iter().filter(|case| case.name().contains(&args.only)) {
        let dir = match case.place {
            Place::Disk => &args.disk,
            Place::Tmpfs => &args.tmpfs,
        };
        let mut best = measure(&case, dir, time)?;
        for _ in 1..TRIES {
            if best.is_within_limits() {
                break;
            }
            eprintln!("{}: again, for {}", case.name(), best.in_words());
            let again = measure(&case, dir, time)?;
            if again.longest() < best.longest() {
                best = again;
            }
        }
        eprintln!("{}: {}", case.name(), best.in_words());
        report.add(case, best);
    }
    report.print();
    let broken = report.broken();
    for broken in &broken {
        eprintln!("greedy: {broken}");
    }
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Serves an image, and measures for a while.
fn measure(case: &Case, dir: &Path, time: Duration) -> anyhow::Result<Measured> {
    let served = Served::start(case, dir).with_context(|| case.name())?;
    let client = served.connect(case.memory)?;
    let mut guest: Box<dyn Guest> = match case.device {
        Device::Ahci => Box::new(Ahci::new(client)?),
        Device::VirtioBlk => Box::new(VirtioBlk::new(client)?),
    };
    let operator = Operator::start(served.control())?;
    let mut reads = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < time {
        guest.fill()?;
        let asked = Instant::now();
        guest.read_register()?;
        reads.push(asked.elapsed());
        guest.rest()?;
    }
    let per_second = guest.bytes() as f64 / begun.elapsed().as_secs_f64();
    // A pause waits for the device, and that for the client's memory.
    while !operator.stop() {
        guest.rest()?;
    }
    let memory = served.memory(case, guest.request_bytes())?;
    Ok(Measured::new(per_second, reads, operator.end()?, memory))
}
