//! One disk: a guest writes on it, the power is cut, a guest looks at what is left.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use blk_core::storage::CacheMode;
use host_std::backend::{Backend, FileBackend, FileOptions};
use host_std::record::Recorder;
use host_std::replay::{CrashState, CrashStates, Log, Options, Positions};
use host_std::testing::vm::{Machine, Root, ServedDisk, Silence, Uml};

use super::files::{File, Found, Said};
use super::tools::Tools;

/// How long a guest may say nothing.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How often it is seen that the user wants the end.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// States that a power cut can leave, of which a seed chooses one.
const STATES: usize = 64;
/// Of what a kernel said, so much is in an error.
const LAST_WORDS_LINES: usize = 12;
/// What ext4 needs of a disk, of which only a logical block is never torn: it writes its superblock, with a checksum, in place.
pub(super) const LOGICAL_BLOCK_BYTES: u32 = 4096;

/// The user has asked for the end.
#[derive(Debug, thiserror::Error)]
#[error("stopped")]
pub(super) struct Stopped;

/// What all disks have in common.
pub(super) struct Scene<'a> {
    pub(super) tools: &'a Tools,
    /// This program, which is the guest's, too.
    pub(super) program: &'a Path,
    /// For all files.
    pub(super) folder: &'a Path,
    /// The file system before a guest wrote to it.
    pub(super) start: &'a Path,
    pub(super) seed: Option<u64>,
    pub(super) stop: &'a AtomicBool,
    /// Told what happens.
    pub(super) tell: &'a (dyn Fn(&str) + Sync),
}

/// What came of a disk.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The files whose sync was acknowledged before the power was cut.
    pub(super) synced: Vec<File>,
    /// Records of the recording up to the power cut.
    pub(super) position: u64,
    /// What was lost then.
    pub(super) state: String,
    /// Why the file system could not be mounted, if it could not.
    pub(super) unmountable: Option<String>,
    /// What was found of the files.
    pub(super) found: Vec<(File, Found)>,
}

/// One disk, with its cache mode.
pub(super) struct Life<'a> {
    pub(super) scene: &'a Scene<'a>,
    pub(super) mode: CacheMode,
}

impl Life<'_> {
    /// From the first boot to what the second one finds.
    pub(super) fn live(&self) -> anyhow::Result<Outcome> {
        let (recording, position, synced) = self.write()?;
        let (left, state) = self.cut(&recording, position)?;
        let mut outcome = Outcome { synced, position, state, unmountable: None, found: Vec::new() };
        self.check(&left, &mut outcome)?;
        Ok(outcome)
    }

    /// A guest writes and syncs; the power is cut at the moment after its last word. Returns the recording, the position of the
    /// cut, and what had been acknowledged by then.
    fn write(&self) -> anyhow::Result<(PathBuf, u64, Vec<File>)> {
        let (image, recording) = (self.file("img"), self.file("rec"));
        std::fs::copy(self.scene.start, &image)
            .with_context(|| format!("cannot make {}", image.display()))?;
        let recorder = Arc::new(Recorder::open(self.open(&image)?, &recording)?);
        let mut synced = Vec::new();
        self.tell("a guest boots, and writes");
        self.guest("write", Arc::clone(&recorder) as _, |said| {
            match said {
                Said::Synced(file) => {
                    recorder.mark(&format!("{} is synced", file.name))?;
                    synced.push(file);
                }
                Said::Written(_) => {}
                other => bail!("the guest says {other}"),
            }
            Ok(())
        })?;
        let position = recorder.mark("power cut")?;
        recorder.end();
        let names: Vec<_> = synced.iter().map(|file| file.name).collect();
        self.tell(&format!("{} are synced; the power is cut", names.join(", ")));
        Ok((recording, position, synced))
    }

    /// What the power cut left: an image, and in words.
    fn cut(&self, recording: &Path, position: u64) -> anyhow::Result<(PathBuf, String)> {
        let log = Arc::new(Log::open(recording)?);
        let options = Options {
            seed: self.scene.seed.unwrap_or(0),
            positions: Positions::At(position),
            // The first one has lost all that could be lost.
            states_per_position: self.scene.seed.map_or(1, |_| STATES),
            base: Some(self.scene.start.into()),
            ..Options::default()
        };
        let mut states: Vec<CrashState> = CrashStates::open(&log, &options)?.collect();
        ensure!(!states.is_empty(), "{}: no crash state at {position}", recording.display());
        let chosen = self.scene.seed.map_or(0, |seed| fastrand::Rng::with_seed(seed).usize(..states.len()));
        let CrashState { image, description, .. } = states.swap_remove(chosen);
        let left = self.file("left.img");
        image.write_to(&left)?;
        Ok((left, description))
    }

    /// A guest boots on what is left.
    fn check(&self, left: &Path, outcome: &mut Outcome) -> anyhow::Result<()> {
        self.tell("the guest comes back, and looks");
        self.guest("check", self.open(left)?, |said| {
            match said {
                Said::Found(file, found) => outcome.found.push((file, found)),
                Said::Unmountable(why) => outcome.unmountable = Some(why),
                other => bail!("the guest says {other}"),
            }
            Ok(())
        })
    }

    fn open(&self, image: &Path) -> anyhow::Result<Arc<dyn Backend>> {
        let options =
            FileOptions { logical_block_bytes: Some(LOGICAL_BLOCK_BYTES), ..FileOptions::new(self.mode) };
        Ok(Arc::new(FileBackend::open(image, &options)?))
    }

    /// Boots a guest that does `task` with a disk, gives each line to `heard`, and cuts its power once it is done.
    fn guest(
        &self,
        task: &str,
        disk: Arc<dyn Backend>,
        mut heard: impl FnMut(Said) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let socket = self.file(&format!("{task}.sock"));
        let served = ServedDisk::start(disk, &socket)?;
        let log = self.file(&format!("{task}.log"));
        let mut arguments = vec!["demo-guest", task];
        let modules = self.scene.tools.modules.as_ref().map(|folder| folder.display().to_string());
        arguments.extend(modules.iter().flat_map(|folder| ["--modules", folder]));
        let uml = Uml {
            program: &self.scene.tools.uml,
            memory_mib: 96,
            socket: &socket,
            device_id: 2,
            root: Root::Host { init: self.scene.program, arguments: &arguments },
            arguments: "",
        };
        let started = Machine::start(uml.command(self.scene.folder), &log);
        let machine = started.with_context(|| format!("cannot start {}", uml.program.display()))?;
        let talked = self.listen(machine, &mut heard).map_err(|error| {
            if error.is::<Stopped>() {
                return error;
            }
            let what = format!("cache={}: the guest that should {task} its files", self.mode.name());
            anyhow::anyhow!("{what}: {error:#}; its kernel said last:{}", last_words(&log))
        });
        // The machine has gone, so nothing comes any more.
        let stopped = served.stop();
        talked?;
        Ok(stopped?)
    }

    /// Takes the machine: at the end its power is cut.
    fn listen(
        &self,
        mut machine: Machine,
        heard: &mut dyn FnMut(Said) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut deadline = Instant::now() + SILENCE_MAX;
        loop {
            if self.scene.stop.load(Ordering::Relaxed) {
                return Err(Stopped.into());
            }
            match machine.console.line((Instant::now() + LOOK_EVERY).min(deadline)) {
                Ok(line) => match line.parse() {
                    Ok(Said::Done) => return Ok(()),
                    Ok(Said::Failed(why)) => bail!("the guest says: {why}"),
                    Ok(said) => heard(said)?,
                    // The kernel's own.
                    Err(_) => continue,
                },
                Err(Silence::Late) if Instant::now() < deadline => continue,
                Err(Silence::Late) => bail!("it said nothing for {} s", SILENCE_MAX.as_secs()),
                Err(Silence::Gone) => bail!("it ended"),
            }
            deadline = Instant::now() + SILENCE_MAX;
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scene.folder.join(format!("{}.{name}", self.mode.name()))
    }

    fn tell(&self, what: &str) {
        (self.scene.tell)(&format!("cache={}: {what}", self.mode.name()));
    }
}

/// What a kernel said last, without the trace of a panic.
fn last_words(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    if let Some(panic) = lines.iter().position(|line| line.contains("Kernel panic")) {
        lines.truncate(panic + 1);
    }
    let from = lines.len().saturating_sub(LAST_WORDS_LINES);
    lines[from..].iter().map(|line| format!("\n  | {line}")).collect()
}
