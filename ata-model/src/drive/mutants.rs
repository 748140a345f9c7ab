//! Defects of a drive that tests switch on.

use blk_core::op::Op;
use blk_core::order::Request;
use blk_core::storage::Storage;

use super::state::Drive;

impl<const N: usize> Drive<N> {
    /// Does once more what a reset took away (CVE-2023-5088).
    #[inline(always)]
    pub(super) fn reexecute<M: ?Sized, S: Storage<M> + ?Sized>(&mut self, memory: &M, storage: &mut S) {
        if let Some((extent, segment)) = self.noted.again() {
            let request = Request::new(Op::Write { extent, fua: false });
            let _ = self.submit(memory, storage, &request, &[segment]);
        }
    }
}
