//! The fault matrix: the real server, through a scripted life, killed before and after each of its system calls, and with each of them
//! failed in each way that its manual page names.
//!
//! `cargo test -p host-std --test fault_matrix -- --all --results FILE` runs all of it, which takes hours, keeps what came out, and
//! goes on where it was stopped. Without arguments it runs a sample, from the seed that it prints, the same each time; `--seed` takes another.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("the fault matrix changes registers of x86-64; build the other tests by name");

mod calls;
mod guest;
mod history;
mod inside;
mod interest;
mod life;
#[cfg(feature = "mutants")]
mod mutants;
mod results;
mod server;
mod tracer;
mod uring;

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};

use crate::calls::{Action, Call, Plan, Target};
use crate::results::{Line, Recorded, Results};

/// How long a sample takes, without `--sample`.
const SAMPLE_TIME: Duration = Duration::from_secs(25);
/// How often a life is lived whose plan's call did not come.
const ATTEMPTS: u32 = 3;
/// Lives that are recorded, as not each makes all calls.
const RECORDINGS: usize = 3;

/// Kills a server at each of its system calls, and fails each.
#[derive(Debug, Parser)]
struct Args {
    /// Run every case, not a sample.
    #[arg(long)]
    all: bool,

    /// Keep each result in this file as a line of JSON, and leave out the cases that are there already.
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,

    /// Only this front end.
    #[arg(long, value_enum)]
    front: Option<Front>,

    /// Only this cache mode.
    #[arg(long, value_enum)]
    cache: Option<Cache>,

    /// Only this case: THREAD/SYSCALL/N:ACTION, where ACTION is kill-before, kill-after, kill-late or an error such as EIO.
    #[arg(long, value_name = "CALL:ACTION")]
    call: Option<Plan>,

    /// The seed of the sample.
    #[arg(long)]
    seed: Option<u64>,

    /// So many cases, instead of as many as 25 s allow.
    #[arg(long, value_name = "N")]
    sample: Option<usize>,

    /// Cases at a time.
    #[arg(long, value_name = "N", default_value_t = 2)]
    jobs: usize,

    /// Switch a defect of the server on, to see that it is found.
    #[cfg(feature = "mutants")]
    #[arg(long, value_name = "NAME")]
    mutant: Option<String>,

    /// Look for a case that finds each of some defects of the server.
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutants: bool,

    /// List the calls of a life, and end.
    #[arg(long)]
    calls: bool,

    #[command(flatten)]
    harness: HarnessArgs,
}

/// What `cargo test` passes to all tests: a name to look for, and options of the harness that this test does not have.
#[derive(Debug, clap::Args)]
struct HarnessArgs {
    #[arg(hide = true)]
    filter: Vec<String>,
    #[arg(long, hide = true)]
    list: bool,
    #[arg(long, hide = true)]
    ignored: bool,
    #[arg(long, hide = true)]
    skip: Vec<String>,
    #[arg(long, hide = true)]
    exact: bool,
    #[arg(long, hide = true)]
    include_ignored: bool,
    #[arg(long, hide = true)]
    nocapture: bool,
    #[arg(long, hide = true)]
    show_output: bool,
    #[arg(short, long, hide = true)]
    quiet: bool,
    #[arg(long, hide = true)]
    color: Option<String>,
    #[arg(long, hide = true)]
    format: Option<String>,
    #[arg(long, hide = true)]
    test_threads: Option<usize>,
}

impl HarnessArgs {
    /// Whether this test is among those that are asked for.
    fn want_this(&self) -> bool {
        let this = |name: &String| "fault_matrix".contains(name.as_str());
        let named = self.filter.is_empty() || self.filter.iter().any(this);
        named && !self.skip.iter().any(this) && !self.list && !self.ignored
    }
}

impl Args {
    fn mutant(&self) -> Option<String> {
        #[cfg(feature = "mutants")]
        return self.mutant.clone();
        #[cfg(not(feature = "mutants"))]
        None
    }
}

/// What the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Front {
    VirtioBlk,
    VirtioScsi,
    Ahci,
}

impl Front {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::VirtioBlk => "virtio-blk",
            Self::VirtioScsi => "virtio-scsi",
            Self::Ahci => "ahci",
        }
    }
}

/// How the image is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cache {
    /// On the page cache.
    Writeback,
    /// By direct I/O and an io_uring.
    None,
    /// The same in this process, where the io_uring's completions fail.
    Ring,
}

impl Cache {
    const ALL: [Self; 3] = [Self::Writeback, Self::None, Self::Ring];

    const fn name(self) -> &'static str {
        match self {
            Self::Writeback => "writeback",
            Self::None => "none",
            Self::Ring => "ring",
        }
    }

    pub(crate) const fn options(self) -> &'static str {
        match self {
            Self::Writeback => "cache=writeback",
            Self::None | Self::Ring => "cache=none,engine=uring",
        }
    }

    /// Whether an io_uring transfers in this process, where nobody looks at it.
    pub(crate) const fn transfers_unseen(self) -> bool {
        matches!(self, Self::Ring)
    }
}

/// A life to live.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) front: Front,
    pub(crate) cache: Cache,
    pub(crate) plan: Option<Plan>,
    /// What the recording said of the plan's call.
    library: bool,
    pub(crate) mutant: Option<String>,
}

impl Case {
    fn key(&self) -> (String, String, String) {
        let plan = life::describe(self.plan.as_ref());
        (self.front.name().into(), self.cache.name().into(), plan)
    }

    /// What repeats it.
    fn command(&self) -> String {
        let features = if self.mutant.is_some() { " --features mutants" } else { "" };
        let mutant = self.mutant.as_ref().map_or(String::new(), |mutant| format!(" --mutant {mutant}"));
        let plan = self.plan.as_ref().map_or(String::new(), |plan| format!(" --call '{plan}'"));
        format!(
            "cargo test -p host-std{features} --test fault_matrix -- --front {} --cache {}{plan}{mutant}",
            self.front.name(),
            self.cache.name(),
        )
    }

    /// Lives it, again where it did not come to its call.
    fn run(&self) -> Result<Line, String> {
        let start = Instant::now();
        let (front, cache, plan) = self.key();
        let mut attempt = 0;
        let report = loop {
            attempt += 1;
            let report = life::live(self)?;
            if report.reached || !report.findings.is_empty() || attempt == ATTEMPTS || self.plan.is_none() {
                break report;
            }
        };
        Ok(Line {
            front,
            cache,
            plan,
            library: if report.reached { report.library } else { self.library },
            reached: report.reached,
            findings: report.findings,
            milliseconds: start.elapsed().as_millis() as u64,
        })
    }
}

/// The seed of a sample that is given none: a landing is not to hang on luck.
const SEED: u64 = 20_261_130;

fn main() -> ExitCode {
    let args = Args::parse();
    if !args.harness.want_this() {
        return ExitCode::SUCCESS;
    }
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("fault_matrix: {error}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether nothing was found.
fn run(args: &Args) -> Result<bool, String> {
    let start = Instant::now();
    #[cfg(feature = "mutants")]
    if args.mutants {
        return mutants::find_all(args.cache.unwrap_or(Cache::Writeback));
    }
    let mut results = Results::open(args.results.as_deref())?;
    let lives = lives(args);
    if let Some(plan) = &args.call {
        let cases = lives.iter().map(|&(front, cache)| Case {
            front,
            cache,
            plan: Some(plan.clone()),
            library: false,
            mutant: args.mutant(),
        });
        return execute(args, &cases.collect::<Vec<_>>(), &mut results, None);
    }
    let mut cases = Vec::new();
    for &(front, cache) in &lives {
        let calls = recorded(args, front, cache, &mut results)?;
        if args.calls {
            calls.iter().for_each(|(call, library, _)| {
                println!("{call}{}", if *library { " (library)" } else { "" })
            });
            continue;
        }
        for (call, library, target) in calls {
            let call: Call = call.parse()?;
            // This process cannot be killed.
            let actions = Action::all_of(call.syscall, target)
                .filter(|action| cache != Cache::Ring || !action.is_kill());
            cases.extend(actions.map(|action| {
                let plan = Some(Plan { call: call.clone(), action });
                Case { front, cache, plan, library, mutant: args.mutant() }
            }));
        }
    }
    if args.calls {
        return Ok(true);
    }
    if args.all {
        let done = results.done();
        cases.retain(|case| !done.contains(&case.key()));
        println!("{} cases; {} are done already", cases.len(), done.len());
        return execute(args, &cases, &mut results, None);
    }
    let seed = args.seed.unwrap_or(SEED);
    println!("a sample of {} cases: --seed {seed}", cases.len());
    fastrand::Rng::with_seed(seed).shuffle(&mut cases);
    // The library's own calls are many, and say little of the server.
    let (library, own): (Vec<_>, Vec<_>) = cases.into_iter().partition(|case| case.library);
    let mut library = library.into_iter();
    let mut sample: Vec<_> = own
        .into_iter()
        .enumerate()
        .flat_map(|(index, case)| {
            let other = if index % 8 == 7 { library.next() } else { None };
            std::iter::once(case).chain(other)
        })
        .collect();
    let until = match args.sample {
        Some(count) => {
            sample.truncate(count);
            None
        }
        None => Some(start + SAMPLE_TIME),
    };
    execute(args, &sample, &mut results, until)
}

/// The lives that are asked for. A sample has the direct I/O of one front only.
fn lives(args: &Args) -> Vec<(Front, Cache)> {
    let fronts = Front::value_variants().iter().filter(|front| args.front.is_none_or(|only| only == **front));
    let pairs = fronts.flat_map(|&front| Cache::ALL.map(|cache| (front, cache)));
    pairs.filter(|(_, cache)| args.cache.is_none_or(|only| only == *cache)).collect()
}

/// The calls of a life without faults, in which nothing may be found.
fn recorded(
    args: &Args,
    front: Front,
    cache: Cache,
    results: &mut Results,
) -> Result<Vec<(String, bool, Target)>, String> {
    let same = |recorded: &&Recorded| recorded.front == front.name() && recorded.cache == cache.name();
    if let Some(recorded) = results.recorded.iter().find(same) {
        return Ok(recorded.calls.clone());
    }
    let case = Case { front, cache, plan: None, library: false, mutant: args.mutant() };
    let (mut calls, mut known) = (Vec::new(), HashSet::new());
    let recordings = if args.all { RECORDINGS } else { 1 };
    for _ in 0..recordings {
        let report = life::live(&case)?;
        if let Some(finding) = report.findings.first() {
            let what = format!("{:?}: {}", finding.kind, finding.text);
            let life = format!("{}, cache={}", front.name(), cache.name());
            return Err(format!(
                "{life}: a life without faults is not in order: {what}\n  {}",
                case.command()
            ));
        }
        for made in report.made {
            let call = made.call.to_string();
            if known.insert(call.clone()) {
                calls.push((call, made.library, made.target));
            }
        }
    }
    let recorded = Recorded { front: front.name().into(), cache: cache.name().into(), calls };
    results.add_recorded(recorded.clone())?;
    Ok(recorded.calls)
}

/// Lives the lives, several at a time, and prints what is found. Returns whether nothing was.
fn execute(
    args: &Args,
    cases: &[Case],
    results: &mut Results,
    until: Option<Instant>,
) -> Result<bool, String> {
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    let shared = Mutex::new((results, None));
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(index) else { return };
                    if until.is_some_and(|until| Instant::now() > until) {
                        return;
                    }
                    let line = case.run();
                    let mut shared = shared.lock().expect("no thread panics with it");
                    let (results, failed) = &mut *shared;
                    let kept = line.and_then(|line| {
                        print(case, &line);
                        results.add(line)
                    });
                    if let Err(error) = kept {
                        *failed = Some(error);
                        next.store(cases.len(), Ordering::Relaxed);
                        return;
                    }
                    if (index + 1).is_multiple_of(200) {
                        let seconds = start.elapsed().as_secs();
                        println!(
                            "{} of {} cases, {seconds} s, {} findings",
                            index + 1,
                            cases.len(),
                            results.findings()
                        );
                    }
                }
            });
        }
    });
    let (results, failed) = shared.into_inner().expect("no thread panics with it");
    if let Some(error) = failed {
        return Err(error);
    }
    results.print();
    println!("{} findings, {} s", results.findings(), start.elapsed().as_secs());
    Ok(results.findings() == 0)
}

fn print(case: &Case, line: &Line) {
    for finding in &line.findings {
        println!("{} {} {}: {:?}: {}", line.front, line.cache, line.plan, finding.kind, finding.text);
    }
    if !line.findings.is_empty() {
        println!("  {}", case.command());
    }
}
