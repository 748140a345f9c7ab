//! Crash states of a recording, each mounted, checked and compared by a guest.

use std::path::Path;
use std::sync::Arc;

use host_std::replay::{CrashState, CrashStates, Log, Options, OverlayBackend, Positions};
use host_std::testing::vm::ServedDisk;

use crate::guest::{Boot, Front, Guest, Machine, SOON};
use crate::workload::{Found, Promises};

/// What came out.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) states: usize,
    pub(crate) positions: usize,
    /// Promises that were due in the states, altogether.
    pub(crate) promises: usize,
    pub(crate) files: usize,
    /// What was promised and is not there, the first ones in words.
    pub(crate) lost: usize,
    /// States that could not be mounted, or in which fsck found something.
    pub(crate) damaged: usize,
    pub(crate) examples: Vec<String>,
}

/// The states to try: half of them where a guest had just been told something, which is where most is at stake.
fn choose(log: &Arc<Log>, from: u64, wanted: usize, seed: u64) -> Vec<CrashState> {
    let options = |positions, per| Options { seed, positions, states_per_position: per, from, base: None };
    let states = |positions, per| -> Vec<_> {
        CrashStates::open(log, &options(positions, per)).expect("crash states").collect()
    };
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut pick = |mut states: Vec<CrashState>, wanted: usize| {
        rng.shuffle(&mut states);
        states.truncate(wanted);
        states
    };
    let mut chosen = pick(states(Positions::Marks, 8), wanted / 2);
    chosen.extend(pick(states(Positions::Sample(wanted), 8), wanted - chosen.len()));
    chosen.sort_by_key(|state| (state.position, state.number));
    chosen
}

/// Tries crash states after position `from` of a recording of a file system.
pub(crate) fn check(recording: &Path, from: u64, filesystem: &str, wanted: usize, seed: u64) -> Report {
    let log = Arc::new(Log::open(recording).expect("a recording"));
    let states = choose(&log, from, wanted, seed);
    let mut report = Report { states: states.len(), ..Report::default() };
    let Some(first) = states.first() else { return report };
    let block = log.info_at(first.position).expect("a disk").logical_block_bytes;
    // Served from this process, so that the next state can be put in its place.
    let overlay = Arc::new(OverlayBackend::new(first.image.clone(), block));
    let folder = tempfile::Builder::new().prefix("state").tempdir().expect("a folder");
    let socket = folder.path().join("disk");
    let disk = ServedDisk::start(Arc::clone(&overlay) as _, &socket).expect("a server");
    let boot = Boot { filesystem, ..Boot::new(Machine::Uml, Front::Blk, &socket) };
    let mut guest = Guest::boot(&boot);
    let mut last = None;
    for state in &states {
        assert!(overlay.swap(state.image.clone()), "of the same size");
        report.positions += usize::from(last.replace(state.position) != Some(state.position));
        let output = guest.follow(&format!("check {filesystem} /dev/vda"), SOON, |_| None);
        let found = Found::new(&output.lines);
        let Some((mounted, status)) = found.check else { panic!("no result of a check:\n{}", output.text()) };
        let promises = Promises::new(state.marks().iter().map(|mark| mark.text.as_str()));
        let broken = promises.broken(&found);
        report.promises += promises.acknowledged;
        report.files += found.files();
        report.lost += broken.len();
        report.damaged += usize::from(!mounted || status != 0);
        if (!broken.is_empty() || !mounted || status != 0) && report.examples.len() < 3 {
            let which = format!("position {}, state {}: {}", state.position, state.number, state.description);
            let fsck = if mounted && status == 0 { String::new() } else { output.text() };
            report.examples.push(format!("{which}\n  {}\n{fsck}", broken.join("\n  ")));
        }
    }
    guest.power_off();
    disk.stop().expect("served to the end");
    report
}

/// In how many crash states after `from` a sector does not hold this version of what `agent one` wrote.
pub(crate) fn stale(recording: &Path, from: u64, sector: u64, version: u64) -> usize {
    let log = Arc::new(Log::open(recording).expect("a recording"));
    let options = Options { seed: 1, positions: Positions::Every, states_per_position: 16, from, base: None };
    let states: Vec<_> = CrashStates::open(&log, &options).expect("crash states").collect();
    assert!(!states.is_empty(), "no crash states");
    let holds = |state: &CrashState| {
        let mut bytes = [0; 512];
        state.image.read(sector, &mut bytes).expect("the image can be read");
        // The fourth word of a unit, see the agent.
        u64::from_le_bytes(bytes[24..32].try_into().expect("eight bytes"))
    };
    states.iter().filter(|state| holds(state) != version).count()
}
