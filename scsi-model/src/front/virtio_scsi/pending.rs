//! The requests that a logical unit has, as the transport knows them.

use core::iter;

use blk_core::units::GuestAddr;

use super::wire::Response;

/// Origin of a request, and where its response goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Place {
    /// Index of the ring.
    pub(super) ring: u16,
    /// Head of the chain.
    pub(super) head: u16,
    /// Where the room for response and sense data is, if it is in one piece: nearly always. Otherwise the chain is walked again.
    pub(super) response: Option<GuestAddr>,
}

/// The data of a request: one way or none, for INOUT is not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) enum Data {
    Out { bytes: u64 },
    In { bytes: u64 },
}

impl Data {
    pub(super) const fn out_bytes(self) -> u64 {
        match self {
            Self::Out { bytes } => bytes,
            Self::In { .. } => 0,
        }
    }

    pub(super) const fn in_bytes(self) -> u64 {
        match self {
            Self::In { bytes } => bytes,
            Self::Out { .. } => 0,
        }
    }

    pub(super) const fn bytes(self) -> u64 {
        match self {
            Self::In { bytes } | Self::Out { bytes } => bytes,
        }
    }
}

/// A request that a logical unit has: the transport's side of a task, whose tag is the place in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct Pending {
    pub(super) chain: Place,
    /// The driver's name for it.
    pub(super) id: u64,
    pub(super) data: Data,
    /// Where the data is, if it is in one piece. Otherwise the chain is walked again.
    pub(super) data_at: Option<GuestAddr>,
    /// What it is answered with if it comes back aborted.
    pub(super) cancelled: Response,
}

/// The requests of a unit, by their tags.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
pub(super) struct PendingTable<const N: usize> {
    #[cfg_attr(feature = "snapshot", serde(with = "serde_big_array::BigArray"))]
    places: [Option<Pending>; N],
    /// Bit n: place n is taken. `N` is 128 at most.
    taken: u128,
}

impl<const N: usize> PendingTable<N> {
    pub(super) const EMPTY: Self = Self { places: [None; N], taken: 0 };

    /// The lowest tag that no request has.
    pub(super) fn free_tag(&self) -> Option<u64> {
        let tag = self.taken.trailing_ones();
        ((tag as usize) < N).then_some(tag.into())
    }

    pub(super) fn get(&self, tag: u64) -> Option<&Pending> {
        self.places.get(usize::try_from(tag).ok()?)?.as_ref()
    }

    pub(super) fn insert(&mut self, tag: u64, pending: Pending) {
        if let Some(place) = usize::try_from(tag).ok().and_then(|tag| self.places.get_mut(tag)) {
            *place = Some(pending);
            self.taken |= bit(tag);
        }
    }

    pub(super) fn remove(&mut self, tag: u64) {
        if let Some(place) = usize::try_from(tag).ok().and_then(|tag| self.places.get_mut(tag)) {
            *place = None;
            self.taken &= !bit(tag);
        }
    }

    pub(super) fn clear(&mut self) {
        self.places.fill(None);
        self.taken = 0;
    }

    /// The requests with their tags.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Pending)> {
        let mut left = self.taken;
        let tags = iter::from_fn(move || {
            let tag = (left != 0).then_some(left.trailing_zeros())?;
            left &= left.wrapping_sub(1);
            Some(u64::from(tag))
        });
        tags.filter_map(|tag| Some((tag, self.get(tag)?)))
    }

    /// What comes back aborted from now on, of what there is, is answered with `response`.
    pub(super) fn cancel(&mut self, response: Response) {
        for pending in self.places.iter_mut().flatten() {
            pending.cancelled = response;
        }
    }
}

fn bit(tag: u64) -> u128 {
    u32::try_from(tag).ok().and_then(|tag| 1_u128.checked_shl(tag)).unwrap_or(0)
}
