//! The states that a power cut can leave at one position: all of them where they are few, else those most likely to hurt.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use fastrand::Rng;

use super::image::ChosenVersion;
use super::medium::{BASE, Medium, floor, is_zero};
use crate::recording::Log;
use crate::recording::history::ChangeId;

/// What differs from the stable image, in ascending order; and how it came about.
pub(super) struct State {
    pub(super) picks: Vec<ChosenVersion>,
    pub(super) description: String,
}

/// A run of which more than one thing is possible.
struct Open {
    sectors: Range<u64>,
    /// What is there if as much is lost as can be.
    floor: ChangeId,
    /// What else can be there, in the order of submission.
    others: Vec<ChangeId>,
}

/// What there is to choose from at a position.
pub(super) struct CrashChoices {
    open: Vec<Open>,
    /// Everything that may or may not be on the medium, in the order in which it would have got there.
    volatile: Vec<ChangeId>,
    /// Index in `volatile`.
    place: HashMap<ChangeId, usize>,
    /// Sectors that are never torn.
    block: u64,
}

/// Which of the volatile changes are on the medium: the one with the highest rank is seen; `None` was lost.
type Ranks = Vec<Option<usize>>;

/// How much of a change that was kept is on the medium.
#[derive(Clone, Copy)]
enum Torn {
    /// All of it.
    Whole,
    /// The blocks before this sector.
    Before(u64),
    /// The blocks from this sector on.
    From(u64),
    /// Each block or not.
    Mixed,
}

impl CrashChoices {
    pub(super) fn at(log: &Arc<Log>, medium: &Medium, position: u64) -> Self {
        let mut open = Vec::new();
        let mut volatile = BTreeSet::new();
        for (sectors, versions) in medium.open() {
            // What is zero whichever it is has nothing to choose.
            if versions.iter().all(|&version| is_zero(log, version)) {
                continue;
            }
            let floor = floor(log, position, versions);
            let others: Vec<_> = versions.iter().copied().filter(|&id| id != floor).collect();
            volatile.extend(others.iter().filter(|&&id| id != BASE).map(|&id| {
                let change = log.history().change(id);
                // In flight counts as later than all that has ended.
                let end = if change.end.at() < position { change.end.at() } else { u64::MAX };
                (end, change.submitted, id)
            }));
            open.push(Open { sectors, floor, others });
        }
        let volatile: Vec<_> = volatile.into_iter().map(|(_, _, id)| id).collect();
        let place = volatile.iter().zip(0..).map(|(&id, at)| (id, at)).collect();
        let block = log.info_at(position).map_or(1, blk_core::storage::Info::sectors_per_block);
        Self { open, volatile, place, block }
    }

    /// At most `most` different states. The same seed gives the same ones.
    pub(super) fn states(&self, most: usize, seed: u64) -> Vec<State> {
        let mut found = Found { states: Vec::new(), seen: HashSet::new(), most };
        if self.combinations().is_some_and(|all| all <= most as u64) {
            self.every_combination(&mut found);
            return found.states;
        }
        let mut rng = Rng::with_seed(seed);
        let all: Ranks = (0..self.volatile.len()).map(Some).collect();
        if let Some(subsets) = 1_u64.checked_shl(all.len() as u32).filter(|&n| n <= most as u64 && n != 0) {
            for subset in 0..subsets {
                let kept: Ranks =
                    all.iter().map(|rank| rank.filter(|rank| subset >> rank & 1 != 0)).collect();
                found.add(self.whole(&kept), || self.describe("subset", &kept));
            }
        } else {
            self.adversarial(&all, &mut rng, &mut found);
        }
        self.samples(&all, &mut rng, &mut found);
        found.states
    }

    /// Where everything volatile is lost, everything is kept, one change alone is lost or kept, the first or the last ones
    /// are kept, and where what was written twice has its older contents.
    fn adversarial(&self, all: &Ranks, rng: &mut Rng, found: &mut Found) {
        let none = vec![None; all.len()];
        found.add(self.whole(&none), || self.describe("everything volatile lost", &none));
        found.add(self.whole(all), || self.describe("nothing lost", all));
        let reversed: Ranks = all.iter().rev().copied().collect();
        found.add(self.whole(&reversed), || self.describe("nothing lost, overlapping writes reordered", all));
        // Where they are too many, which of them are tried depends on the seed.
        let mut order: Vec<_> = (0..all.len()).collect();
        rng.shuffle(&mut order);
        for &one in &order {
            if found.is_full() {
                return;
            }
            let only: Ranks = all.iter().map(|rank| rank.filter(|&rank| rank == one)).collect();
            found.add(self.whole(&only), || self.describe("one kept", &only));
            let but: Ranks = all.iter().map(|rank| rank.filter(|&rank| rank != one)).collect();
            found.add(self.whole(&but), || self.describe("one lost", &but));
            let first: Ranks = all.iter().map(|rank| rank.filter(|&rank| rank < one)).collect();
            found.add(self.whole(&first), || self.describe("the first kept", &first));
            let last: Ranks = all.iter().map(|rank| rank.filter(|&rank| rank > one)).collect();
            found.add(self.whole(&last), || self.describe("the last kept", &last));
            if found.states.len() * 2 > found.most && found.most < all.len() {
                return;
            }
        }
    }

    /// Random subsets, in any order, with torn changes, until there are enough or nothing new comes.
    fn samples(&self, all: &Ranks, rng: &mut Rng, found: &mut Found) {
        let mut in_vain = 0;
        while !found.is_full() && in_vain < 64 {
            let before = found.states.len();
            let share = [0.1, 0.5, 0.9][rng.usize(..3)];
            let mut ranks: Ranks = all.clone();
            let reordered = rng.bool();
            if reordered {
                rng.shuffle(&mut ranks);
            }
            for rank in &mut ranks {
                *rank = rank.filter(|_| rng.f64() < share);
            }
            if rng.u8(..4) == 0 {
                found.add(self.any(rng), || "each block by itself".into());
            } else {
                let torn = self.tear(rng);
                let picks = self.torn(&ranks, &torn, rng);
                let how = if reordered { "torn and reordered" } else { "torn" };
                found.add(picks, || self.describe(how, &ranks));
            }
            in_vain = if found.states.len() == before { in_vain + 1 } else { 0 };
        }
    }

    /// What is left of each volatile change that is kept.
    fn tear(&self, rng: &mut Rng) -> Vec<Torn> {
        let borders: Vec<u64> = self.open.iter().map(|open| open.sectors.start).collect();
        let border = |rng: &mut Rng| {
            let at = borders.get(rng.usize(..borders.len().max(1))).copied().unwrap_or(0);
            at + rng.u64(..64) * self.block
        };
        let torn = self.volatile.iter().map(|_| match rng.u8(..6) {
            0 => Torn::Before(border(rng)),
            1 => Torn::From(border(rng)),
            2 => Torn::Mixed,
            _ => Torn::Whole,
        });
        torn.collect()
    }

    /// Changes as wholes.
    fn whole(&self, ranks: &Ranks) -> Vec<ChosenVersion> {
        let mut picks = Picks::default();
        for open in &self.open {
            picks.add(open, open.sectors.clone(), self.seen(open, |at| ranks[at]));
        }
        picks.0
    }

    /// Changes in part.
    fn torn(&self, ranks: &Ranks, torn: &[Torn], rng: &mut Rng) -> Vec<ChosenVersion> {
        let mut picks = Picks::default();
        for (open, block) in self.blocks() {
            let version = self.seen(open, |at| {
                let there = match torn[at] {
                    Torn::Whole => true,
                    Torn::Before(sector) => block.start < sector,
                    Torn::From(sector) => block.start >= sector,
                    Torn::Mixed => rng.bool(),
                };
                ranks[at].filter(|_| there)
            });
            picks.add(open, block, version);
        }
        picks.0
    }

    /// Any version for each block.
    fn any(&self, rng: &mut Rng) -> Vec<ChosenVersion> {
        let mut picks = Picks::default();
        for (open, block) in self.blocks() {
            let choice = rng.usize(..=open.others.len());
            picks.add(open, block, open.others.get(choice).copied().unwrap_or(open.floor));
        }
        picks.0
    }

    /// Of the versions that have a rank, the one with the highest; the stable one if none has.
    fn seen(&self, open: &Open, mut rank: impl FnMut(usize) -> Option<usize>) -> ChangeId {
        let ranked = open.others.iter().filter_map(|id| {
            let at = *self.place.get(id)?;
            rank(at).map(|rank| (rank, *id))
        });
        ranked.max().map_or(open.floor, |(_, id)| id)
    }

    /// How many states there are, unless they are too many to count.
    fn combinations(&self) -> Option<u64> {
        self.blocks().try_fold(1_u64, |all, (open, _)| all.checked_mul(open.others.len() as u64 + 1))
    }

    fn every_combination(&self, found: &mut Found) {
        let blocks: Vec<_> = self.blocks().collect();
        let mut choices = vec![0; blocks.len()];
        loop {
            let mut picks = Picks::default();
            for ((open, block), &choice) in blocks.iter().zip(&choices) {
                let version: Option<&ChangeId> =
                    usize::checked_sub(choice, 1).and_then(|at| open.others.get(at));
                picks.add(open, block.clone(), version.copied().unwrap_or(open.floor));
            }
            let number = found.states.len();
            found.add(picks.0, || format!("combination {number} of all"));
            // The next number, of which each block is a digit.
            let raised =
                choices.iter().zip(&blocks).position(|(&choice, (open, _))| choice < open.others.len());
            let Some(raised) = raised else { return };
            choices[raised] += 1;
            choices[..raised].fill(0);
        }
    }

    /// The open runs, cut where blocks begin.
    fn blocks(&self) -> impl Iterator<Item = (&Open, Range<u64>)> {
        self.open.iter().flat_map(move |open| {
            let Range { mut start, end } = open.sectors.clone();
            std::iter::from_fn(move || {
                let block = start..end.min((start / self.block + 1) * self.block);
                start = block.end;
                (!block.is_empty()).then_some((open, block))
            })
        })
    }

    fn describe(&self, how: &str, ranks: &Ranks) -> String {
        let kept = ranks.iter().flatten().count();
        format!("{how}: {kept} of {} volatile changes", self.volatile.len())
    }
}

/// Picks, with neighbours joined and what is stable left out.
#[derive(Default)]
struct Picks(Vec<ChosenVersion>);

impl Picks {
    fn add(&mut self, open: &Open, sectors: Range<u64>, version: ChangeId) {
        if version == open.floor {
            return;
        }
        match self.0.last_mut() {
            Some(last) if last.end == sectors.start && last.version == version => last.end = sectors.end,
            _ => self.0.push(ChosenVersion { start: sectors.start, end: sectors.end, version }),
        }
    }
}

/// States, each once.
struct Found {
    states: Vec<State>,
    seen: HashSet<Vec<ChosenVersion>>,
    most: usize,
}

impl Found {
    fn is_full(&self) -> bool {
        self.states.len() >= self.most
    }

    fn add(&mut self, picks: Vec<ChosenVersion>, description: impl FnOnce() -> String) {
        if !self.is_full() && self.seen.insert(picks.clone()) {
            self.states.push(State { picks, description: description() });
        }
    }
}
