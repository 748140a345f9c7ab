//! What the defects of a unit have to know. Without the feature `mutants` it is nothing.

use crate::task_set::Task;

/// What a reset executes once more: a task as it came.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Noted {
    #[cfg(feature = "mutants")]
    task: Task,
}

impl Noted {
    #[inline(always)]
    pub(super) const fn of(_task: &Task) -> Self {
        Self {
            #[cfg(feature = "mutants")]
            task: *_task,
        }
    }

    /// The task, if a running one that a reset drops is to wait again.
    #[inline(always)]
    pub(super) fn again(&self) -> Option<Task> {
        #[cfg(feature = "mutants")]
        if blk_core::mutant::active(blk_core::mutant::Mutant::ResetReexecutes) {
            return Some(self.task);
        }
        None
    }
}
