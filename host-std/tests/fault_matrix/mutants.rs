//! Defects of the server that the matrix has to find: a case of it that is in order without the defect, and not with it.

use crate::calls::{Action, Plan};
use crate::results::Kind;
use crate::{Cache, Case, Front, life};

/// A defect, by the name that `BLK_HOST_MUTANT` takes, the life that shows it, and as what.
const MUTANTS: &[(&str, Front, Kind)] = &[
    ("CacheOffWithoutFlush", Front::VirtioBlk, Kind::Lost),
    ("TakenNotRecorded", Front::VirtioBlk, Kind::Twice),
    // The command finds what it has written itself, and fails.
    ("StageNotRecorded", Front::VirtioScsi, Kind::Gone),
];

/// How often a case is lived again, with the defect and without it, before the finding is taken for the defect's.
const CONFIRMATIONS: u32 = 2;

/// The thread that transfers.
const WORKER: &str = "blk-worker";

/// Looks for a case of each that finds it, and prints it. Returns whether each was found.
///
/// # Errors
/// That a life cannot be begun.
pub(crate) fn find_all(cache: Cache) -> Result<bool, String> {
    let mut all = true;
    for &(mutant, front, kind) in MUTANTS {
        let case = |plan: Option<Plan>, mutant: Option<&str>| Case {
            front,
            cache,
            plan,
            library: false,
            mutant: mutant.map(str::to_owned),
        };
        let found = find(&case, mutant, kind)?;
        println!("{mutant} ({}): {}", front.name(), found.as_deref().unwrap_or("MISSED"));
        all &= found.is_some();
    }
    Ok(all)
}

fn find(
    case: &dyn Fn(Option<Plan>, Option<&str>) -> Case,
    mutant: &str,
    kind: Kind,
) -> Result<Option<String>, String> {
    // The plans are those of a sound server; the first of all is that nothing happens to it.
    let sound = life::live(&case(None, None))?;
    let kills = sound.made.into_iter().filter(|made| !made.library).flat_map(|made| {
        [Action::KillLate, Action::KillAfter].map(|action| Some(Plan { call: made.call.clone(), action }))
    });
    // While a worker has a request, it is on its way.
    let plans: Vec<_> =
        kills.filter(|plan| plan.as_ref().is_some_and(|plan| plan.call.thread == WORKER)).collect();
    for plan in std::iter::once(None).chain(plans) {
        let report = life::live(&case(plan.clone(), Some(mutant)))?;
        let found = report.findings.iter().find(|finding| finding.kind == kind);
        let Some(finding) = found else { continue };
        if is_the_mutants(case, plan.as_ref(), mutant, kind)? {
            let what = format!("{:?}: {}", finding.kind, finding.text);
            return Ok(Some(format!("{what}\n  {}", case(plan, Some(mutant)).command())));
        }
    }
    Ok(None)
}

/// Whether a plan finds something again and again with the defect, and never without it.
fn is_the_mutants(
    case: &dyn Fn(Option<Plan>, Option<&str>) -> Case,
    plan: Option<&Plan>,
    mutant: &str,
    kind: Kind,
) -> Result<bool, String> {
    for _ in 0..CONFIRMATIONS {
        let without = life::live(&case(plan.cloned(), None))?;
        let with = life::live(&case(plan.cloned(), Some(mutant)))?;
        let found = with.findings.iter().any(|finding| finding.kind == kind);
        if !without.findings.is_empty() || !found {
            return Ok(false);
        }
    }
    Ok(true)
}
