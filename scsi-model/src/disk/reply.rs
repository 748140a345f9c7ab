//! Data for the guest, and the reply that targets give as well as units.

use heapless::Vec;
use zerocopy::IntoBytes;

use crate::sense::Sense;
use crate::wire::data::LunsHead;

/// Most logical units that REPORT LUNS lists.
pub(crate) const LUNS_MAX: usize = 64;

/// Data for the guest, whole: it is cut to the allocation length only when it is copied out, so that no length
/// field is affected by that and nothing beyond it is ever touched (CVE-2011-3346).
pub(crate) struct Reply(Vec<u8, 1024>);

impl Reply {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let fits = self.0.extend_from_slice(bytes).is_ok();
        debug_assert!(fits, "no reply is longer than this");
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// SPC-4, REPORT LUNS, of a target whose logical units are `luns`.
pub(crate) fn report_luns(select: u8, luns: impl Iterator<Item = [u8; 8]>) -> Result<Reply, Sense> {
    let mut list = Vec::<[u8; 8], LUNS_MAX>::new();
    match select {
        // Those with a peripheral or flat address; all of them.
        0x00 | 0x02 => luns.take(LUNS_MAX).for_each(|lun| _ = list.push(lun)),
        // Well-known units: a target has none.
        0x01 => {}
        _ => return Err(Sense::cdb_field(2, None)),
    }
    let bytes = u32::try_from(list.as_bytes().len()).unwrap_or(0).into();
    let mut reply = Reply::new();
    reply.push(LunsHead { bytes, reserved: [0; 4] }.as_bytes());
    reply.push(list.as_bytes());
    Ok(reply)
}
