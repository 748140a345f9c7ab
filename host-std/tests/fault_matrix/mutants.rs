//! Defects of the server that the matrix has to find: a case of it that is in order without the defect, and not with it.

use crate::calls::{Action, Call, Plan};
use crate::{Cache, Case, Front, life};

/// A defect, by the name that `BLK_HOST_MUTANT` takes, and the life that shows it.
const MUTANTS: &[(&str, Front)] = &[
    ("CacheOffWithoutFlush", Front::VirtioBlk),
    ("TakenNotRecorded", Front::VirtioBlk),
    ("StageNotRecorded", Front::VirtioScsi),
];

/// How often a case is lived again, with the defect and without it, before the finding is taken for the defect's.
const CONFIRMATIONS: u32 = 2;

/// Looks for a case of each that finds it, and prints it. Returns whether each was found.
///
/// # Errors
/// That a life cannot be begun.
pub(crate) fn find_all(cache: Cache, seed: u64) -> Result<bool, String> {
    let mut all = true;
    for &(mutant, front) in MUTANTS {
        let case = |plan: Option<Plan>, mutant: Option<&str>| Case {
            front,
            cache,
            plan,
            library: false,
            mutant: mutant.map(str::to_owned),
        };
        let found = find(&case, mutant, seed)?;
        println!("{mutant} ({}): {}", front.name(), found.as_deref().unwrap_or("MISSED"));
        all &= found.is_some();
    }
    Ok(all)
}

fn find(
    case: &dyn Fn(Option<Plan>, Option<&str>) -> Case,
    mutant: &str,
    seed: u64,
) -> Result<Option<String>, String> {
    // The plans are those of a sound server; the first of all is that nothing happens to it.
    let sound = life::live(&case(None, None))?;
    let kills = sound.made.into_iter().filter(|made| !made.library).flat_map(|made| {
        [Action::KillBefore, Action::KillAfter].map(|action| Some(Plan { call: made.call.clone(), action }))
    });
    // Where a request is on its way, most defects show.
    let on_its_way =
        |call: &Call| ["blk-queue-0", "blk-worker", "blk-flusher"].contains(&call.thread.as_str());
    let mut plans: Vec<_> = kills.filter(|plan| plan.as_ref().is_some_and(|p| on_its_way(&p.call))).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut plans);
    for plan in std::iter::once(None).chain(plans) {
        let report = life::live(&case(plan.clone(), Some(mutant)))?;
        let Some(finding) = report.findings.first() else { continue };
        if is_the_mutants(case, plan.as_ref(), mutant)? {
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
) -> Result<bool, String> {
    for _ in 0..CONFIRMATIONS {
        let without = life::live(&case(plan.cloned(), None))?;
        let with = life::live(&case(plan.cloned(), Some(mutant)))?;
        if !without.findings.is_empty() || with.findings.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}
