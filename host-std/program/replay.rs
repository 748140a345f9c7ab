//! `blk-host replay`: what is in a recording, the image at any point of it, and what power cuts could have left.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use blk_core::op::Op;
use blk_core::storage::{Cache, Info};
use clap::Args;
use host_std::record::Contents;
use host_std::replay::{Base, CrashState, CrashStates, Image, Log, Options, Positions, What};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use crate::number::whole;
use crate::output::{Failure, outln};

/// How long a command runs before it shows how far it is.
const QUIET: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  blk-host replay disk.rec                               what was recorded
  blk-host replay disk.rec --at 1200 --out disk.img      the image after 1200 records
  blk-host replay disk.rec --crash-states 1000 --seed 7 --list
                                                         a thousand power cuts, one line each
  blk-host replay disk.rec --crash-states 20 --out-dir states
                                                         twenty of them as images
  blk-host replay disk.rec --state 1200:3 --seed 7 --out state.img
                                                         one of them again";

/// Read a recording that `blk-host serve --record` has written.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReplayArgs {
    /// The recording.
    log: PathBuf,

    /// The image as it was when the recording began; not needed where it was all zeroes.
    #[arg(long, value_name = "IMAGE")]
    base: Option<PathBuf>,

    /// Rebuild the image as it was after this many records.
    #[arg(long, value_name = "POSITION", requires = "out", conflicts_with_all = ["crash_states", "state"], value_parser = whole::<u64>(0..=u64::MAX), allow_negative_numbers = true)]
    at: Option<u64>,

    /// Rebuild one crash state, as a list with the same --seed and --per-position names it.
    #[arg(long, value_name = "POSITION:NUMBER", requires = "out", value_parser = state_name, conflicts_with = "crash_states")]
    state: Option<(u64, usize)>,

    /// Write the image into this new file.
    #[arg(long, value_name = "IMAGE")]
    out: Option<PathBuf>,

    /// Go through at least this many images that a power cut could have left, if there are so many.
    #[arg(long, value_name = "N", value_parser = whole::<u64>(1..=u64::MAX), allow_negative_numbers = true)]
    crash_states: Option<u64>,

    /// Decides where the power is cut and what is then lost.
    #[arg(long, value_name = "SEED", default_value_t = 0, value_parser = whole::<u64>(0..=u64::MAX), allow_negative_numbers = true)]
    seed: u64,

    /// Most crash states of one position.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = whole::<u64>(1..=u64::MAX), allow_negative_numbers = true)]
    per_position: u64,

    /// Cut the power at no position before this one.
    #[arg(long, value_name = "POSITION", default_value_t = 0, value_parser = whole::<u64>(0..=u64::MAX), allow_negative_numbers = true)]
    from: u64,

    /// Write each crash state as an image into this directory.
    #[arg(long, value_name = "DIR", requires = "crash_states", conflicts_with = "out")]
    out_dir: Option<PathBuf>,

    /// Print a line for each crash state.
    #[arg(long, requires = "crash_states")]
    list: bool,

    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,

    /// Show no progress bar.
    #[arg(short, long)]
    quiet: bool,
}

fn state_name(text: &str) -> Result<(u64, usize), String> {
    let numbers =
        text.split_once(':').and_then(|(at, number)| Some((at.parse().ok()?, number.parse().ok()?)));
    numbers.ok_or_else(|| "give a position and a number, as --list prints them: 1200:3".into())
}

pub(crate) fn run(args: &ReplayArgs) -> anyhow::Result<ExitCode> {
    let log = Arc::new(Log::open(&args.log)?);
    match (args.at, args.state, args.crash_states, &args.out) {
        (Some(position), _, _, Some(out)) => at(args, &log, position, out)?,
        (_, Some(state), _, Some(out)) => one_state(args, &log, state, out)?,
        (_, _, Some(wanted), _) => crash_states(args, &log, wanted)?,
        (_, _, _, Some(_)) => bail!("--out: of what? give --at POSITION, or --state POSITION:NUMBER"),
        _ => summary(args, &log)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn at(args: &ReplayArgs, log: &Arc<Log>, position: u64, out: &Path) -> anyhow::Result<()> {
    let base = Arc::new(Base::open(log, args.base.as_deref())?);
    let image = Image::live(log, &base, position)?;
    write(args, &image, out)?;
    let bytes = image.sectors() << 9;
    if args.json {
        outln!("{}", json!({ "position": position, "image": out, "bytes": bytes }))?;
    } else {
        outln!(
            "{}: the image after {position} of {} records, {bytes} bytes",
            out.display(),
            log.positions()
        )?;
    }
    Ok(())
}

fn one_state(
    args: &ReplayArgs,
    log: &Arc<Log>,
    (position, number): (u64, usize),
    out: &Path,
) -> anyhow::Result<()> {
    let options = options(args, Positions::At(position));
    let state = CrashStates::open(log, &options)?.nth(number).with_context(|| {
        let known = CrashStates::open(log, &options).map_or(0, Iterator::count);
        format!("--state {position}:{number}: there are {known} states at this position; count from 0, or give a larger --per-position")
    })?;
    write(args, &state.image, out)?;
    print_state(args, &state)?;
    Ok(())
}

fn crash_states(args: &ReplayArgs, log: &Arc<Log>, wanted: u64) -> anyhow::Result<()> {
    let total = usize::try_from(wanted)?;
    let states = CrashStates::open(log, &options(args, Positions::Total(total)))?;
    let bar = progress(args, states.positions_left() as u64, "positions");
    if let Some(dir) = &args.out_dir {
        std::fs::create_dir_all(dir).map_err(|error| {
            anyhow!("--out-dir {}: cannot be made: {error}; give another one", dir.display())
        })?;
    }
    let (mut count, mut positions, mut last) = (0_u64, 0_u64, None);
    for state in states {
        count += 1;
        if last != Some(state.position) {
            positions += 1;
            last = Some(state.position);
        }
        bar.set_position(positions - 1);
        if let Some(dir) = &args.out_dir {
            state.image.write_to(&dir.join(format!("{}-{}.img", state.position, state.number)))?;
        }
        if args.list || args.out_dir.is_some() {
            bar.suspend(|| print_state(args, &state))?;
        }
    }
    bar.finish_and_clear();
    if args.json && !args.list && args.out_dir.is_none() {
        outln!("{}", json!({ "states": count, "positions": positions, "seed": args.seed }))?;
    } else if !args.json {
        outln!("{count} crash states at {positions} positions, seed {}", args.seed)?;
    }
    Ok(())
}

/// One line, in JSON too: there may be thousands.
fn print_state(args: &ReplayArgs, state: &CrashState) -> Result<(), Failure> {
    let CrashState { position, number, description, .. } = state;
    let marks = state.marks();
    let last = marks.last().map(|mark| mark.text.as_str());
    if args.json {
        let line = json!({
            "position": position, "number": number, "description": description,
            "marks": marks.len(), "last_mark": last,
        });
        outln!("{line}")
    } else {
        let last = last.map_or(String::new(), |text| format!(", the last: {text}"));
        outln!("{position}:{number}  {description}; {} marks before{last}", marks.len())
    }
}

fn options(args: &ReplayArgs, positions: Positions) -> Options {
    Options {
        seed: args.seed,
        positions,
        states_per_position: usize::try_from(args.per_position).unwrap_or(usize::MAX),
        from: args.from,
        base: args.base.clone(),
    }
}

fn write(args: &ReplayArgs, image: &Image, out: &Path) -> anyhow::Result<()> {
    let bar = progress(args, 0, "writing the image");
    let written = image.write_to(out);
    bar.finish_and_clear();
    Ok(written?)
}

/// A bar that shows itself after two seconds, on a terminal.
fn progress(args: &ReplayArgs, steps: u64, what: &'static str) -> ProgressBar {
    if args.quiet {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(steps);
    let template =
        if steps == 0 { "{msg} {elapsed}" } else { "{msg} {bar:30} {pos}/{len} {elapsed}, {eta} left" };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    let (shown, start) = (bar.clone(), Instant::now());
    std::thread::spawn(move || {
        std::thread::sleep(QUIET.saturating_sub(start.elapsed()));
        if !shown.is_finished() {
            shown.set_draw_target(indicatif::ProgressDrawTarget::stderr());
            shown.enable_steady_tick(Duration::from_millis(100));
        }
    });
    bar
}

/// What is in a recording.
#[derive(Debug, Default, Serialize)]
struct Summary {
    positions: u64,
    bytes: u64,
    /// Of a record that was cut off.
    cut_bytes: u64,
    image_bytes: u64,
    starts_with: &'static str,
    sessions: u64,
    /// Sessions whose server stopped in order.
    ended: u64,
    reads: u64,
    writes: u64,
    written_bytes: u64,
    fua: u64,
    write_zeroes: u64,
    discards: u64,
    flushes: u64,
    failed: u64,
    /// Operations that never completed.
    in_flight: u64,
    cache: Option<&'static str>,
    logical_block_bytes: Option<u32>,
    marks: u64,
    last_mark: Option<String>,
}

impl Summary {
    fn of(log: &Log) -> Self {
        let info = log.info_at(log.positions());
        let mut summary = Self {
            positions: log.positions(),
            bytes: log.whole_bytes() + log.cut_bytes(),
            cut_bytes: log.cut_bytes(),
            image_bytes: info.map_or(log.sectors(), |info| info.sectors) << 9,
            starts_with: if log.contents() == Contents::Zeroes { "zeroes" } else { "data" },
            cache: info.map(cache),
            logical_block_bytes: info.map(|info| info.logical_block_bytes),
            marks: log.marks().len() as u64,
            last_mark: log.marks().last().map(|mark| mark.text.clone()),
            ..Self::default()
        };
        for event in log.events() {
            summary.count(&event.what);
        }
        summary
    }

    fn count(&mut self, what: &What) {
        match what {
            What::Session { .. } => self.sessions += 1,
            What::End => self.ended += 1,
            What::Submit { op, .. } => {
                self.in_flight += 1;
                match op {
                    Op::Read { .. } => self.reads += 1,
                    Op::Write { extent, fua } => {
                        self.writes += 1;
                        self.fua += u64::from(*fua);
                        self.written_bytes += extent.bytes().unwrap_or(0);
                    }
                    Op::WriteZeroes { .. } => self.write_zeroes += 1,
                    Op::Discard { .. } => self.discards += 1,
                    Op::Flush => self.flushes += 1,
                    // Never recorded.
                    Op::Hold { .. } | Op::LoadState { .. } | Op::StoreState { .. } => {}
                }
            }
            What::Complete { result, .. } => {
                self.in_flight -= 1;
                self.failed += u64::from(result.is_err());
            }
            What::Withdrawn { .. } => self.in_flight -= 1,
            What::Info(_) | What::Fence | What::Mark(_) => {}
        }
    }
}

const fn cache(info: &Info) -> &'static str {
    match info.cache {
        Cache::WriteThrough => "write-through",
        Cache::WriteBack => "write-back",
        Cache::Unsafe => "unsafe",
    }
}

fn summary(args: &ReplayArgs, log: &Log) -> anyhow::Result<()> {
    let s = Summary::of(log);
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&s)?)?;
        return Ok(());
    }
    outln!("{}: {} records, {} bytes", log.path().display(), s.positions, s.bytes)?;
    if s.cut_bytes != 0 {
        outln!("cut off     {} bytes of a record at the end; what is before it counts", s.cut_bytes)?;
    }
    outln!("image       {} bytes, {} at the start", s.image_bytes, s.starts_with)?;
    if let (Some(cache), Some(block)) = (s.cache, s.logical_block_bytes) {
        outln!("storage     {cache}, blocks of {block} bytes")?;
    }
    outln!("sessions    {}, of which {} ended in order", s.sessions, s.ended)?;
    outln!(
        "operations  {} reads, {} writes ({} bytes, {} with FUA), {} flushes, {} write-zeroes, {} discards",
        s.reads,
        s.writes,
        s.written_bytes,
        s.fua,
        s.flushes,
        s.write_zeroes,
        s.discards
    )?;
    outln!("            {} failed, {} never completed", s.failed, s.in_flight)?;
    match &s.last_mark {
        Some(text) => outln!("marks       {}, the last: {text}", s.marks)?,
        None => outln!("marks       none")?,
    }
    Ok(())
}
