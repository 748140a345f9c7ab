//! Data for the guest, and the reply that targets give as well as units.

use heapless::{Vec, VecView};
use zerocopy::IntoBytes;

use crate::command::TABLE;
use crate::sense::Sense;
use crate::wire::data::{LunsHead, OpcodeEntry, Timeouts};

/// Most logical units that REPORT LUNS lists.
pub(crate) const LUNS_MAX: usize = 64;

/// Data for the guest, whole: it is cut to the allocation length only when it is copied out, so that no length
/// field is affected by that and nothing beyond it is ever touched (CVE-2011-3346).
pub(crate) struct Reply<const B: usize = REPLY_BYTES>(Vec<u8, B>);

/// The longest reply: every command with its timeouts, or every logical unit.
const REPLY_BYTES: usize = {
    let commands = 4 + TABLE.len() * (size_of::<OpcodeEntry>() + size_of::<Timeouts>());
    let units = size_of::<LunsHead>() + 8 * LUNS_MAX;
    if commands > units { commands } else { units }
};

impl<const B: usize> Reply<B> {
    #[inline(always)]
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        push(self.0.as_mut_view(), bytes);
    }

    /// Puts `bytes` in the place of the first bytes, for a length that is known last.
    pub(crate) fn put_first(&mut self, bytes: &[u8]) {
        self.0.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[inline(never)]
fn push(reply: &mut VecView<u8>, bytes: &[u8]) {
    let fits = reply.extend_from_slice(bytes).is_ok();
    debug_assert!(fits, "no reply is longer than this");
}

/// SPC-4, REPORT LUNS, of a target whose logical units are `luns`.
pub(crate) fn report_luns(
    select: u8,
    luns: impl Iterator<Item = [u8; 8]>,
    reply: &mut Reply,
) -> Result<(), Sense> {
    let head = |bytes: usize| LunsHead { bytes: u32::try_from(bytes).unwrap_or(0).into(), reserved: [0; 4] };
    let most = match select {
        // Those with a peripheral or flat address; all of them.
        0x00 | 0x02 => LUNS_MAX,
        // Well-known units: a target has none.
        0x01 => 0,
        _ => return Err(Sense::cdb_field(2, None)),
    };
    reply.push(head(0).as_bytes());
    luns.take(most).for_each(|lun| reply.push(&lun));
    let bytes = reply.bytes().len().saturating_sub(size_of::<LunsHead>());
    reply.put_first(head(bytes).as_bytes());
    Ok(())
}
