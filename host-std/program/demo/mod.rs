//! `blk-host demo`: what a power cut leaves of a guest's files, with `cache=unsafe` and with `cache=none`.
//!
//! ```text
//! mkfs ─▶ start.img ─┬▶ unsafe.img ◀─ recorder ◀─ vhost-user ◀─ Linux writes f1..f8, syncs f1..f6
//!                    └▶ none.img   ◀─ the same
//! recording ─▶ the power is cut after the last word of the guest ─▶ left.img ◀─ vhost-user ◀─ Linux says what it finds
//! ```
//!
//! The guest is User-Mode Linux with the files of this machine as its root, read-only, and this program as its first process:
//! it needs no root, no initramfs and no hardware virtualisation.

mod files;
pub(crate) mod guest;
mod life;
mod outcome;
mod tools;

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Context as _;
use blk_core::storage::CacheMode;
use tempfile::TempDir;

use crate::cli::DemoArgs;
use crate::exit::{EXIT_STOPPED, EXIT_UNSAFE};
use crate::output::{complain, outln};
use crate::temporary;
use life::{LOGICAL_BLOCK_BYTES, Life, Scene, Stopped};
use outcome::Comparison;
use tools::Tools;

/// Of a disk.
const IMAGE_BYTES: u64 = 32 << 20;

/// Shows it; ends early once `stop` is set.
pub(crate) fn run(args: &DemoArgs, stop: &AtomicBool) -> anyhow::Result<ExitCode> {
    let tools = match Tools::find(args) {
        // What was being fetched was stopped by the same signal.
        Err(_) if stop.load(Ordering::Relaxed) => return Ok(ExitCode::from(EXIT_STOPPED)),
        tools => tools?,
    };
    let mut folder = folder(args)?;
    folder.disable_cleanup(args.keep);
    let compared = compare(args, stop, &tools, folder.path());
    if args.keep {
        complain(format_args!("kept: {}", folder.path().display()));
    }
    let compared = match compared {
        Err(error) if error.is::<Stopped>() => return Ok(ExitCode::from(EXIT_STOPPED)),
        compared => compared?,
    };
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&compared)?)?;
    } else {
        compared.print()?;
    }
    Ok(if compared.as_promised { ExitCode::SUCCESS } else { ExitCode::from(EXIT_UNSAFE) })
}

fn folder(args: &DemoArgs) -> anyhow::Result<TempDir> {
    let place = args.dir.clone().unwrap_or_else(temporary::directory);
    // Guests are started elsewhere.
    let place = std::path::absolute(&place).unwrap_or(place);
    let made = tempfile::Builder::new().prefix("blk-host-demo-").tempdir_in(&place);
    made.with_context(|| {
        format!(
            "{}: cannot make a folder; give --dir DIR, or set TMPDIR, to one that can be written",
            place.display()
        )
    })
}

fn compare(args: &DemoArgs, stop: &AtomicBool, tools: &Tools, folder: &Path) -> anyhow::Result<Comparison> {
    let began = Instant::now();
    let tell = |what: &str| {
        if !args.quiet {
            complain(format_args!("{what}"));
        }
    };
    tell(&format!("two disks of {} MiB with ext4 are made in {}", IMAGE_BYTES >> 20, folder.display()));
    let start = folder.join("start.img");
    let made = std::fs::File::create_new(&start).and_then(|file| file.set_len(IMAGE_BYTES));
    made.with_context(|| format!("cannot make {}", start.display()))?;
    tools.make_file_system(&start, LOGICAL_BLOCK_BYTES)?;
    let program = std::env::current_exe().context("cannot find this program's file, which the guest runs")?;
    let (start, program, seed) = (&*start, &*program, args.seed);
    let scene = Scene { tools, program, folder, start, seed, stop, tell: &tell };
    // What takes time is the guests' boots: both at once.
    let [unsafe_, none] = std::thread::scope(|scope| {
        let scene = &scene;
        [CacheMode::Unsafe, CacheMode::None]
            .map(|mode| scope.spawn(move || Life { scene, mode }.live()))
            .map(|life| life.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked"))))
    });
    Ok(Comparison::new(&unsafe_?, &none?, began.elapsed()))
}
