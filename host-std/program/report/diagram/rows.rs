//! What the rows of a diagram show, in order.

use blk_core::sim::{
    Action, Contents, Ending, Happened, History, HistoryEvent, OpName, Party, TRACKED, Violation, step_name,
};

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// An arrow from one lane to another; `note` is a second line.
    Message { from: Party, to: Party, text: String, kind: Kind, note: Option<String> },
    /// What a power cut could now leave in sectors where that has changed.
    Medium(Vec<Held>),
    /// From here on the guest may rely on this.
    Promise(String),
    /// Power is cut. The last one ends what is not the medium.
    PowerCut { last: bool },
    /// What is left after a power cut; if the promises allow it.
    Left { sectors: Vec<Left>, headline: String, text: String, kept: bool },
    /// A promise is broken that needs no power cut to be seen.
    Broken(String),
}

/// How an arrow is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Reply,
    Failure,
}

/// How the host's data stands to the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// As before.
    No,
    /// It may get there at any time.
    Perhaps,
    /// It is there.
    Yes,
}

/// What a sector could hold, and how it came to that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) sector: usize,
    pub(super) contents: String,
    pub(super) reach: Reach,
}

/// What a sector holds after a power cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) sector: usize,
    pub(super) contents: String,
    pub(super) allowed: bool,
}

type Sectors = [Vec<Contents>; TRACKED];

/// The rows of a history.
pub(super) fn rows(history: &History) -> Vec<Row> {
    let initial = || core::array::from_fn(|_| vec![Contents::Old]);
    let used = used(history);
    let start = |&sector: &usize| Held { sector, contents: short(Contents::Old), reach: Reach::No };
    let first = Row::Medium(used.iter().map(start).collect());
    let mut rows = Rows { rows: vec![first], used, reachable: initial(), allowed: initial() };
    for event in &history.events {
        rows.add(event);
    }
    if let Some(last) = history.events.last()
        && history.violation().is_none()
    {
        rows.rows.push(Row::PowerCut { last: true });
        rows.kept(last);
    }
    rows.rows
}

struct Rows {
    rows: Vec<Row>,
    /// Sectors that the program uses.
    used: Vec<usize>,
    reachable: Sectors,
    allowed: Sectors,
}

impl Rows {
    fn add(&mut self, event: &HistoryEvent) {
        // What a completion puts on the medium is there before the device hears of it.
        let completes = matches!(event.what, Happened::Completed { .. } | Happened::DoneAtOnce { .. });
        if completes {
            self.reach(event);
        }
        match &event.what {
            Happened::PowerCut { left } => {
                self.rows.push(Row::PowerCut { last: false });
                self.boots(left);
            }
            Happened::Broken { violation } if violation.is_power_cut() => {
                self.rows.push(Row::PowerCut { last: true });
                self.lost(violation);
            }
            Happened::Broken { violation } => self.rows.push(Row::Broken(sentence(&violation.to_string()))),
            _ => self.rows.push(message(event)),
        }
        if !completes {
            self.reach(event);
        }
        self.promise(event);
    }

    /// Shows what could be left, if that is no more what it was.
    fn reach(&mut self, event: &HistoryEvent) {
        if matches!(event.what, Happened::Broken { .. } | Happened::PowerCut { .. }) {
            self.reachable = event.reachable.clone();
            return;
        }
        let before = std::mem::replace(&mut self.reachable, event.reachable.clone());
        let held = |&sector: &usize| {
            let (old, new) = (&before[sector], &self.reachable[sector]);
            let reach = if is_more(new, old) { Reach::Perhaps } else { Reach::Yes };
            (old != new).then(|| Held { sector, contents: either(new), reach })
        };
        let held: Vec<_> = self.used.iter().filter_map(held).collect();
        if !held.is_empty() {
            self.rows.push(Row::Medium(held));
        }
    }

    /// Shows what must be there from now on, where less is allowed than before.
    fn promise(&mut self, event: &HistoryEvent) {
        if matches!(event.what, Happened::Ended { .. }) {
            for &sector in &self.used {
                if is_more(&self.allowed[sector], &event.allowed[sector]) {
                    let values = either(&event.allowed[sector]);
                    self.rows.push(Row::Promise(format!("promise: sector {sector} keeps {values}")));
                }
            }
        }
        self.allowed = event.allowed.clone();
    }

    fn boots(&mut self, left: &[Contents; TRACKED]) {
        let contents = |&sector: &usize| Left { sector, contents: short(left[sector]), allowed: true };
        self.rows.push(Row::Left {
            sectors: self.used.iter().map(contents).collect(),
            headline: "The machine boots again.".into(),
            text: String::new(),
            kept: true,
        });
    }

    /// The end of a history in which nothing is broken.
    fn kept(&mut self, last: &HistoryEvent) {
        let of = |&sector: &usize| Left { sector, contents: either(&last.reachable[sector]), allowed: true };
        let promised = self.used.iter().filter(|&&sector| last.allowed[sector].len() == 1);
        let promised: Vec<_> = promised.map(|&sector| either(&last.allowed[sector])).collect();
        let free = self.used.iter().filter(|&&sector| last.allowed[sector].len() != 1);
        let free =
            free.map(|&sector| format!("Nothing was promised yet of sector {sector}: either is right."));
        self.rows.push(Row::Left {
            sectors: self.used.iter().map(of).collect(),
            headline: match promised.as_slice() {
                [] => "As promised.".into(),
                [one] => format!("{one} is kept, as promised."),
                several => format!("{} are kept, as promised.", several.join(" and ")),
            },
            text: free.collect::<Vec<_>>().join(" "),
            kept: true,
        });
    }

    fn lost(&mut self, violation: &Violation) {
        let left = |sector, value: u8, allowed| Left { sector, contents: short(value.into()), allowed };
        let (mut sectors, headline) = match *violation {
            Violation::Lost { sector, value, newer, .. } => {
                (vec![left(sector, value, false)], format!("{} is lost.", step_name(newer)))
            }
            Violation::Reordered { step, shows, before, lacks, value, .. } => (
                vec![
                    Left { sector: shows, contents: step_name(step), allowed: true },
                    left(lacks, value, false),
                ],
                format!("{} is lost, {} is there.", step_name(before), step_name(step)),
            ),
            Violation::Unwritten { sector, value } => {
                (vec![left(sector, value, false)], "What nobody wrote is there.".into())
            }
            _ => (Vec::new(), "A promise is broken.".into()),
        };
        sectors.sort_by_key(|left| left.sector);
        let text = sentence(&violation.to_string());
        self.rows.push(Row::Left { sectors, headline, text, kept: false });
    }
}

fn message(event: &HistoryEvent) -> Row {
    let (kind, text, note) = match &event.what {
        Happened::Issued { step, action } => {
            (Kind::Request, format!("{} = {}", step_name(*step), action), None)
        }
        Happened::Submitted { op, .. } => (Kind::Request, OpName(*op).to_string(), None),
        Happened::Completed { op, ok, late, .. } => {
            let kind = if *ok { Kind::Reply } else { Kind::Failure };
            let verb = if *ok { "done" } else { "failed" };
            let note = late.then(|| "not yet seen by the device".to_owned());
            (kind, format!("{} {verb}", OpName(*op)), note)
        }
        Happened::Ended { step, result, read } => {
            let kind = if *result == Ending::Done { Kind::Reply } else { Kind::Failure };
            let found = read.iter().map(|(sector, value)| {
                format!("sector {sector} holds {}", value.map_or("a torn sector".into(), short))
            });
            let found: Vec<_> = found.collect();
            let note = (!found.is_empty()).then(|| found.join(", "));
            (kind, format!("{} {}", step_name(*step), result.words()), note)
        }
        Happened::DoneAtOnce { op, ok, .. } => {
            let kind = if *ok { Kind::Reply } else { Kind::Failure };
            let verb = if *ok { "done" } else { "failed" };
            (kind, format!("{} {verb} at once", OpName(*op)), None)
        }
        Happened::Polled => (Kind::Request, "looks for completions".into(), None),
        // Not drawn as an arrow.
        other @ (Happened::PowerCut { .. } | Happened::Broken { .. }) => {
            (Kind::Failure, other.to_string(), None)
        }
    };
    Row::Message { from: event.from, to: event.to, text, kind, note }
}

/// The sectors that a program uses.
fn used(history: &History) -> Vec<usize> {
    let runs = history.events.iter().filter_map(|event| match event.what {
        Happened::Issued { action, .. } => match action {
            Action::Write(run)
            | Action::WriteFua(run)
            | Action::WriteOrdered(run)
            | Action::WriteZeroes(run)
            | Action::Discard(run)
            | Action::Read(run) => Some(run),
            Action::Flush | Action::CacheOff | Action::CacheOn | Action::Reset => None,
        },
        _ => None,
    });
    let mut used: Vec<_> = runs.flat_map(|run| run.sectors()).collect();
    used.sort_unstable();
    used.dedup();
    used
}

/// Words with a capital and a full stop.
fn sentence(words: &str) -> String {
    let mut rest = words.chars();
    let first = rest.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", rest.as_str())
}

/// Whether something is in `these` that is not in `those`.
fn is_more(these: &[Contents], those: &[Contents]) -> bool {
    these.iter().any(|value| !those.contains(value))
}

/// Contents of which one is there: the oldest first.
fn either(values: &[Contents]) -> String {
    if let [value] = values {
        return short(*value);
    }
    // Three names fit in their box.
    let old = values.contains(&Contents::Old).then(|| "old".to_owned());
    let others = values.iter().filter(|value| **value != Contents::Old);
    let mut names: Vec<_> = old.into_iter().chain(others.map(|value| short(*value))).collect();
    let last = names.pop().unwrap_or_default();
    format!("{} or {last}", names.join(", "))
}

fn short(value: Contents) -> String {
    match value {
        Contents::Old => "old data".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use blk_core::sim::{Cell, Report};
    use blk_core::storage::CacheMode;
    use host_std::proof::{Era, Front, guests};

    use super::*;

    fn example(mode: CacheMode) -> Vec<Row> {
        let guest = &guests(Front::AhciNcq, Era::Today)[0];
        rows(&guest.example(Cell::new(mode, 3)))
    }

    fn counterexample(front: Front, era: Era, guest: usize, mode: CacheMode) -> Vec<Row> {
        let watch = &mut |_| ControlFlow::Continue(());
        let report: Report = guests(front, era)[guest].explore(Cell::new(mode, 2), watch);
        rows(&report.counterexample().expect("it loses data").history)
    }

    fn promises(rows: &[Row]) -> usize {
        rows.iter().filter(|row| matches!(row, Row::Promise(_))).count()
    }

    #[test]
    fn what_is_flushed_is_kept_and_of_what_is_not_nothing_is_promised() {
        let rows = example(CacheMode::WriteBack);
        let Some(Row::Left { sectors, headline, text, kept: true }) = rows.last() else {
            panic!("{rows:#?}")
        };
        assert_eq!(headline, "A is kept, as promised.");
        assert!(text.contains("sector 1"), "{text}");
        let contents: Vec<_> = sectors.iter().map(|left| left.contents.as_str()).collect();
        assert_eq!(contents, ["A", "old or C"]);
        assert_eq!(promises(&rows), 1);
        let held = rows.iter().filter_map(|row| if let Row::Medium(held) = row { Some(held) } else { None });
        let held: Vec<_> = held.flatten().collect();
        let reach = |reach| held.iter().filter(|held| held.reach == reach).count();
        assert_eq!((reach(Reach::Perhaps), reach(Reach::Yes)), (2, 1));
    }

    #[test]
    fn with_the_cache_off_each_write_is_promised_when_it_is_done() {
        let rows = example(CacheMode::WriteThrough);
        assert_eq!(promises(&rows), 2);
        let Some(Row::Left { headline, .. }) = rows.last() else { panic!("{rows:#?}") };
        assert_eq!(headline, "A and C are kept, as promised.");
    }

    #[test]
    fn a_loss_ends_with_the_power_cut_and_names_what_is_lost() {
        for (front, era, guest, mode) in [
            (Front::VirtioBlk, Era::Today, 0, CacheMode::Unsafe),
            (Front::PciIde, Era::Of2009, 0, CacheMode::WriteBack),
            (Front::VirtioBlk, Era::Of2009, 1, CacheMode::WriteThrough),
        ] {
            let rows = counterexample(front, era, guest, mode);
            let [.., Row::PowerCut { last: true }, Row::Left { sectors, headline, kept: false, .. }] =
                rows.as_slice()
            else {
                panic!("{rows:#?}")
            };
            assert!(sectors.iter().any(|left| !left.allowed), "{sectors:?}");
            assert!(headline.starts_with("A is lost"), "{headline}");
        }
    }
}
