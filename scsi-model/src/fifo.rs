//! A queue of fixed size.

use core::hash::{Hash, Hasher};

use heapless::Deque;

/// At most `N` items, first in, first out. Equal, and of one encoding, exactly if the items are: where they lie in the ring
/// does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "snapshot", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(
    feature = "snapshot",
    serde(bound(serialize = "T: serde::Serialize", deserialize = "T: serde::de::DeserializeOwned"))
)]
pub(crate) struct Fifo<T, const N: usize>(Deque<T, N>);

/// A length and the items.
#[cfg(feature = "snapshot")]
impl<T: postcard::experimental::max_size::MaxSize, const N: usize> postcard::experimental::max_size::MaxSize
    for Fifo<T, N>
{
    const POSTCARD_MAX_SIZE: usize =
        usize::POSTCARD_MAX_SIZE.saturating_add(N.saturating_mul(T::POSTCARD_MAX_SIZE));
}

impl<T, const N: usize> Fifo<T, N> {
    pub(crate) const fn new() -> Self {
        Self(Deque::new())
    }

    pub(crate) const fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn front(&self) -> Option<&T> {
        self.0.front()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }

    /// Adds an item after all others. False if there is no room.
    pub(crate) fn push_back(&mut self, item: T) -> bool {
        self.0.push_back(item).is_ok()
    }

    /// Adds an item before all others. False if there is no room.
    pub(crate) fn push_front(&mut self, item: T) -> bool {
        self.0.push_front(item).is_ok()
    }

    pub(crate) fn pop_front(&mut self) -> Option<T> {
        self.0.pop_front()
    }

    pub(crate) fn clear(&mut self) {
        while self.0.pop_front().is_some() {}
    }

    /// Takes away what `keep` does not keep. (`Deque::retain` links a panic.)
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        for _ in 0..self.0.len() {
            if let Some(item) = self.0.pop_front()
                && keep(&item)
            {
                // It takes the place that has just become free.
                let _ = self.0.push_back(item);
            }
        }
    }
}

impl<T: Hash, const N: usize> Hash for Fifo<T, N> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.len().hash(state);
        self.0.iter().for_each(|item| item.hash(state));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_keeps_its_order_wherever_the_ring_begins() {
        for turn in 0..5 {
            let mut fifo = Fifo::<u8, 5>::new();
            for _ in 0..turn {
                assert!(fifo.push_back(0) && fifo.pop_front() == Some(0));
            }
            assert!((1..=4).all(|item| fifo.push_back(item)) && fifo.push_front(9) && !fifo.push_back(5));
            fifo.retain(|item| item % 2 == 1);
            assert_eq!(fifo.iter().copied().collect::<std::vec::Vec<u8>>(), [9, 1, 3]);
            let mut same = Fifo::new();
            assert!([9, 1, 3].into_iter().all(|item| same.push_back(item)));
            assert_eq!(fifo, same);
            fifo.clear();
            assert!(fifo.is_empty() && fifo.front().is_none());
        }
    }

    /// Full of what takes most room.
    #[cfg(feature = "snapshot")]
    #[test]
    fn no_encoding_is_longer_than_the_longest() {
        use blk_core::snapshot::{Kind, encode};
        use postcard::experimental::max_size::MaxSize as _;
        const MOST: usize = Kind::POSTCARD_MAX_SIZE + Fifo::<u64, 200>::POSTCARD_MAX_SIZE + size_of::<u32>();
        let mut fifo = Fifo::<u64, 200>::new();
        while fifo.push_back(u64::MAX) {}
        assert!(encode(Kind::new(*b"FIFO", 1), &fifo, &mut [0; MOST]).is_ok());
    }
}
