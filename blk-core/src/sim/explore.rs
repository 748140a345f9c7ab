//! Explores every schedule and every crash point of every program, or walks at random through long ones.
//!
//! A state is known by a 64-bit XXH3 hash of its canonical encoding. Of n states, two share a hash, so that one of them
//! is not explored, with a probability of about n^2 / 2^65: less than one in 200,000 for 13 million states.

use core::hash::{BuildHasherDefault, Hasher};
use core::ops::ControlFlow;
use std::boxed::Box;
use std::collections::HashSet;
use std::time::Instant;
use std::vec::Vec;

use postcard::ser_flavors::Flavor;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_64;

use crate::sim::cell::{Cell, Counterexample, Progress, Report, Verdict};
use crate::sim::disk::{AtOnce, Fate, SimHandle};
use crate::sim::guest::Action;
use crate::sim::history::History;
use crate::sim::memory::SimMemory;
use crate::sim::oracle::Violation;
use crate::sim::state::{Event, SimGuest, State, What};

/// Transitions between two looks at whether to go on.
const WATCH_EVERY: u64 = 1 << 12;

/// Explores all programs of up to `cell.length` steps that `boot`'s guest can express, with every schedule of the host,
/// every injected error and every power cut within the cell's bounds.
///
/// `boot` brings a device up without touching the disk; every state and every power cut starts from what it returns.
/// `watch` is called every few thousand transitions and may stop the search.
///
/// A counterexample is minimal: no shorter program has one, and no history of a program of its length has fewer events.
pub fn explore<G: SimGuest>(
    boot: &dyn Fn(&SimMemory, &mut [SimHandle]) -> G,
    cell: &Cell,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Report {
    let started = Instant::now();
    let booted = State::boot(cell, boot);
    let mut search = Search::new(&booted, cell.length, u16::MAX, watch);
    let found = search.run();
    let explored = search.progress();
    let verdict = match found {
        Found::Nothing => Verdict::Safe,
        Found::Stopped => Verdict::Stopped,
        Found::Violation(path, violation) => {
            // What is in flight is told more plainly than what is done at once, wherever it shows as much.
            let later = booted.in_flight_only();
            let found = Search::new(&later, cell.length, u16::MAX, watch).run();
            let (booted, found) = match found {
                Found::Violation(path, violation) => (later, (path, violation)),
                Found::Nothing | Found::Stopped => (booted, (path, violation)),
            };
            let (path, violation) = minimize(&booted, cell.length, found, watch);
            Verdict::Unsafe(counterexample(&booted, &path, violation, None))
        }
    };
    Report { verdict, explored, elapsed: started.elapsed() }
}

/// Walks at random through programs of `cell.length` steps, `walks` times, each from a seed of its own: `seed` and the
/// numbers that follow it. A counterexample names its seed; one walk from it finds it again.
pub fn sample<G: SimGuest>(
    boot: &dyn Fn(&SimMemory, &mut [SimHandle]) -> G,
    cell: &Cell,
    seed: u64,
    walks: u64,
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Report {
    let started = Instant::now();
    let booted = State::boot(cell, boot);
    let mut explored = Progress::default();
    let mut verdict = Verdict::Safe;
    for seed in (0..walks).map(|walk| seed.wrapping_add(walk)) {
        explored.programs += 1;
        if let Err((path, violation)) = walk(&booted, cell.length, seed, &mut explored) {
            verdict = Verdict::Unsafe(counterexample(&booted, &path, violation, Some(seed)));
            break;
        }
        if watch(explored).is_break() {
            verdict = Verdict::Stopped;
            break;
        }
    }
    Report { verdict, explored, elapsed: started.elapsed() }
}

/// One history of those that [`explore`] tries: `program`, each step of which is done before the next is issued, on a host where
/// nothing fails. Of the steps, at most `cell.length`; those that the guest cannot express are left out.
pub fn example<G: SimGuest>(
    boot: &dyn Fn(&SimMemory, &mut [SimHandle]) -> G,
    cell: &Cell,
    program: &[Action],
) -> History {
    let booted = State::boot(cell, boot);
    let program = &program[..program.len().min(usize::from(cell.length))];
    let events = booted.clone().undisturbed(program);
    booted.history(&events, None)
}

/// [`explore`], which nobody stops.
pub fn explore_all<G: SimGuest>(boot: &dyn Fn(&SimMemory, &mut [SimHandle]) -> G, cell: &Cell) -> Report {
    explore(boot, cell, &mut |_| ControlFlow::Continue(()))
}

/// [`sample`] from seed 1, which nobody stops.
pub fn sample_all<G: SimGuest>(
    boot: &dyn Fn(&SimMemory, &mut [SimHandle]) -> G,
    cell: &Cell,
    walks: u64,
) -> Report {
    sample(boot, cell, 1, walks, &mut |_| ControlFlow::Continue(()))
}

enum Found {
    Nothing,
    Stopped,
    Violation(Vec<Event>, Violation),
}

/// A depth-first search: memory for what was seen, and for one path.
struct Search<'a, G> {
    booted: &'a State<G>,
    length: u8,
    /// Most events in a history.
    events_max: u16,
    /// The states seen; where histories are bounded, each with the number of events that led to it.
    seen: Hashes,
    programs: Hashes,
    transitions: u64,
    encoding: Vec<u8>,
    watch: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
}

struct Frame<G> {
    /// Gone when the last of the events took it along. Boxed, since frames move.
    state: Option<Box<State<G>>>,
    /// What can happen, and how much of it was tried.
    events: Vec<Event>,
    tried: usize,
    /// The program so far.
    program: u64,
}

impl<'a, G: SimGuest> Search<'a, G> {
    fn new(
        booted: &'a State<G>,
        length: u8,
        events_max: u16,
        watch: &'a mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Self {
        Self {
            booted,
            length,
            events_max,
            seen: Hashes::default(),
            programs: Hashes::default(),
            transitions: 0,
            encoding: Vec::new(),
            watch,
        }
    }

    fn progress(&self) -> Progress {
        Progress {
            states: self.seen.len() as u64,
            transitions: self.transitions,
            programs: self.programs.len() as u64,
        }
    }

    fn run(&mut self) -> Found {
        let mut spare = Vec::new();
        let mut path = std::vec![self.frame(Box::new(self.booted.clone()), 0, &mut spare)];
        while let Some(frame) = path.last_mut() {
            let Some(&event) = frame.events.get(frame.tried) else {
                spare.extend(path.pop().map(|frame| frame.events));
                continue;
            };
            frame.tried += 1;
            self.transitions += 1;
            if self.transitions.is_multiple_of(WATCH_EVERY) {
                let progress = self.progress();
                if (self.watch)(progress).is_break() {
                    return Found::Stopped;
                }
            }
            let program = self.follow(frame.program, event);
            let last = frame.tried == frame.events.len()
                && frame.state.as_ref().is_some_and(|state| state.is_in_flight_only());
            let state = if last { frame.state.take() } else { frame.state.clone() };
            let Some(mut state) = state else { continue };
            match state.apply(event, self.booted, &mut |_| {}) {
                Ok(choices) if choices.void => continue,
                Ok(choices) => {
                    if let Some(before) = &frame.state {
                        frame.events.extend(before.longer(event, &choices));
                    }
                }
                Err(violation) => {
                    let events = path.iter().map(|frame| frame.events[frame.tried - 1]).collect();
                    return Found::Violation(events, violation);
                }
            }
            let events = path.len() as u16;
            if events < self.events_max && self.is_new(&state, events) {
                path.push(self.frame(state, program, &mut spare));
            }
        }
        Found::Nothing
    }

    fn frame(&self, state: Box<State<G>>, program: u64, spare: &mut Vec<Vec<Event>>) -> Frame<G> {
        let mut events = spare.pop().unwrap_or_default();
        events.clear();
        state.events(self.length, &mut events);
        Frame { state: Some(state), events, tried: 0, program }
    }

    /// The program after `event`.
    fn follow(&mut self, program: u64, event: Event) -> u64 {
        let What::Issue(action) = event.what else { return program };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&program.to_le_bytes());
        // An action encodes in 3 bytes at most: its name, and a run of sectors.
        let longer = match postcard::to_slice(&action, &mut bytes[8..]) {
            Ok(_) => xxh3_64(&bytes),
            Err(_) => program,
        };
        self.programs.insert(longer);
        longer
    }

    /// Whether `state` was not seen before. Where histories are bounded, after as many events: with fewer it may lead
    /// further.
    fn is_new(&mut self, state: &State<G>, events: u16) -> bool {
        self.encoding.clear();
        let hash = encode(state, &mut self.encoding);
        let bounded = if self.events_max == u16::MAX { 0 } else { u64::from(events) };
        self.seen.insert(hash.wrapping_add(bounded.wrapping_mul(GOLDEN)))
    }
}

/// The shortest program that has a counterexample, and of those the fewest events.
fn minimize<G: SimGuest>(
    booted: &State<G>,
    length: u8,
    found: (Vec<Event>, Violation),
    watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> (Vec<Event>, Violation) {
    let mut best = found;
    let mut shortest = length;
    for shorter in 1..length {
        match Search::new(booted, shorter, u16::MAX, watch).run() {
            Found::Nothing => {}
            Found::Stopped => return best,
            Found::Violation(path, violation) => {
                best = (path, violation);
                shortest = shorter;
                break;
            }
        }
    }
    for events_max in 1..best.0.len() as u16 {
        match Search::new(booted, shortest, events_max, watch).run() {
            Found::Nothing => {}
            Found::Stopped => return best,
            Found::Violation(path, violation) => return (path, violation),
        }
    }
    best
}

fn counterexample<G: SimGuest>(
    booted: &State<G>,
    path: &[Event],
    violation: Violation,
    seed: Option<u64>,
) -> Counterexample {
    let program = path.iter().filter_map(|event| match event {
        Event { what: What::Issue(action), .. } => Some(*action),
        _ => None,
    });
    Counterexample {
        program: program.collect(),
        history: booted.clone().history(path, Some(violation)),
        violation,
        seed,
    }
}

fn walk<G: SimGuest>(
    booted: &State<G>,
    length: u8,
    seed: u64,
    explored: &mut Progress,
) -> Result<(), (Vec<Event>, Violation)> {
    let mut random = SplitMix(seed);
    let mut state = booted.clone();
    let mut path = Vec::new();
    let mut events = Vec::new();
    loop {
        events.clear();
        state.events(length, &mut events);
        // A program is mostly issued and completed; power cuts and errors are rare, so that it gets somewhere first.
        let kind = match random.below(64) {
            0 => 0,
            1..4 => 1,
            4..34 => 2,
            _ => 3,
        };
        let picked = |event: &Event| match event.what {
            What::PowerCut { .. } => kind == 0,
            What::Complete { fate: Fate::Fails, .. } => kind == 1,
            What::Issue(_) => kind == 2,
            What::Complete { .. } | What::Poll => kind == 3,
        };
        if events.iter().any(picked) {
            events.retain(picked);
        }
        let Some(&event) = events.get(random.below(events.len() as u64) as usize) else { return Ok(()) };
        // One operation in four is done at once.
        let mask = (0..AtOnce::MAX).fold(0, |mask, nth| mask | u8::from(random.below(4) == 0) << nth);
        let event = Event { at_once: AtOnce { mask, fails: false }, ..event };
        path.push(event);
        explored.states += 1;
        explored.transitions += 1;
        if let Err(violation) = state.apply(event, booted, &mut |_| {}) {
            return Err((path, violation));
        }
    }
}

/// The hash of the canonical encoding of `state`.
fn encode(state: &impl Serialize, into: &mut Vec<u8>) -> u64 {
    let encoded = postcard::serialize_with_flavor(state, Encoding(into));
    assert!(encoded.is_ok(), "a state of plain data has an encoding");
    xxh3_64(into)
}

struct Encoding<'a>(&'a mut Vec<u8>);

impl Flavor for Encoding<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

type Hashes = HashSet<u64, BuildHasherDefault<PassThrough>>;

/// For keys that are hashes already.
#[derive(Default)]
struct PassThrough(u64);

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        debug_assert!(false, "only u64 keys");
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// 2^64 divided by the golden ratio: its multiples are far apart.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64: every seed is a good seed.
struct SplitMix(u64);

impl SplitMix {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }
}
