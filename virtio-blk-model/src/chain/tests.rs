//! The two ways to sort a chain, the quick and the general one, agree on whatever a driver may write.

use std::vec::Vec;

use blk_core::memory::CellMemory;
use blk_core::virtq::{Queue, RingFeatures};
use proptest::prelude::*;

use super::*;

const SIZE: u16 = 8;
const RING: u64 = 0;
const TABLE: u64 = 0x200;
const HEADER: u64 = 0x400;
const MEMORY_BYTES: usize = 0x1000;

const N: u16 = Descriptor::NEXT;
const W: u16 = Descriptor::WRITE;
const I: u16 = Descriptor::INDIRECT;

/// Address, length, flags, next.
type Raw = (u64, u32, u16, u16);

type Sorted = (Chain, Segments);

/// Both ways of sorting the chain at 0 of a ring's table, behind which there is an indirect one.
fn sort(ring: &[Raw], table: &[Raw], indirect: bool) -> (Option<Sorted>, Result<Sorted, QueueError>) {
    let mut bytes = std::vec![0x5a; MEMORY_BYTES];
    let memory = CellMemory::new(GuestAddr(0), &mut bytes);
    for (at, descriptors) in [(RING, ring), (TABLE, table)] {
        for (at, (addr, len, flags, next)) in (at..).step_by(16).zip(descriptors) {
            let rest = u64::from(*len) | u64::from(*flags) << 32 | u64::from(*next) << 48;
            memory.write(GuestAddr(at), &[addr.to_le_bytes(), rest.to_le_bytes()].concat()).unwrap();
        }
    }
    let mut queue = Queue::new(SIZE);
    let setup = queue.setup_mut().unwrap();
    (setup.descriptors, setup.driver, setup.device) = (GuestAddr(RING), GuestAddr(0x100), GuestAddr(0x140));
    queue.enable(RingFeatures { indirect, event_idx: false }).unwrap();
    let running = queue.running().unwrap();
    let mut segments = Segments::new();
    let usual = Chain::usual(&running, &memory, 0, &mut segments).map(|chain| (chain, segments.clone()));
    let mut chain = Chain::default();
    let sorted = chain.sort(&running, &memory, 0, &mut segments).map(|()| (chain, segments));
    (usual, sorted)
}

fn addr() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0x400..0xf00_u64,
        1 => Just(TABLE),
        1 => Just(MEMORY_BYTES as u64 - 16),
        1 => Just(u64::MAX - 15),
        1 => Just(u64::MAX),
    ]
}

fn len() -> impl Strategy<Value = u32> {
    prop::sample::select(std::vec![0, 1, 1, 2, 15, 16, 16, 17, 32, 48, 128, 512, u32::MAX])
}

fn descriptor() -> impl Strategy<Value = Raw> {
    let flags = prop_oneof![4 => 0..4_u16, 1 => 0..16_u16];
    (addr(), len(), flags, 0..=SIZE)
}

/// A chain as drivers have them, cut into one header, data in one direction and a status byte.
fn usual(data: u16, direction: u16) -> Vec<Raw> {
    let piece = |n: u16| (0x800 + 0x40 * u64::from(n), 0x40, N | direction, n + 2);
    let mut chain = std::vec![(HEADER, 16, N, 1)];
    chain.extend((0..data).map(piece));
    chain.push((0x700, 1, W, 0));
    chain
}

fn program() -> impl Strategy<Value = (Vec<Raw>, Vec<Raw>, bool)> {
    let chain = (0..6_u16, prop::bool::ANY).prop_map(|(data, write)| usual(data, if write { W } else { 0 }));
    let changes = prop::collection::vec((0..SIZE as usize, 0..4_u8, descriptor()), 0..3);
    let chain = (chain, changes).prop_map(|(mut chain, changes)| {
        for (at, field, with) in changes {
            if let Some(one) = chain.get_mut(at) {
                match field {
                    0 => one.0 = with.0,
                    1 => one.1 = with.1,
                    2 => one.2 = with.2,
                    _ => one.3 = with.3,
                }
            }
        }
        chain
    });
    let anything = prop::collection::vec(descriptor(), SIZE as usize);
    let one = prop_oneof![3 => chain, 1 => anything];
    (one.clone(), one, prop::bool::ANY, prop::bool::ANY).prop_map(|(mut ring, table, indirect, behind)| {
        if behind {
            ring[0] = (TABLE, 16 * table.len() as u32, I, 0);
        }
        (ring, table, indirect)
    })
}

proptest! {
    // Miri takes a second for each.
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: if cfg!(miri) { 4 } else { 256 },
        ..ProptestConfig::default()
    })]
    #[test]
    fn what_is_usual_is_sorted_the_same_in_general((ring, table, indirect) in program()) {
        if let (Some(usual), sorted) = sort(&ring, &table, indirect) {
            prop_assert!(usual.0.is_usable() && usual.0.status().is_some());
            prop_assert_eq!(Ok(usual), sorted);
        }
    }
}

#[test]
fn what_drivers_send_is_usual() {
    for data in 0..=6 {
        for direction in [0, W] {
            let chain = usual(data, direction);
            let (direct, sorted) = sort(&chain, &[], false);
            assert_eq!(Ok(direct.clone().expect("it is usual")), sorted, "{data} pieces");
            let table = [(TABLE, 16 * chain.len() as u32, I, 0)];
            assert_eq!(sort(&table, &chain, true).0, direct, "in a table of its own");
        }
    }
}

#[test]
fn what_is_cut_otherwise_is_sorted_in_general() {
    let two = [(0x800, 512, N | W, 1), (HEADER, 16, 0, 0)];
    let header_in_pieces = [(HEADER, 8, N, 1), (HEADER + 8, 8, N, 2), (0x800, 513, W, 0)];
    let data_behind_header = [(HEADER, 528, N, 1), (0x700, 1, W, 0)];
    let status_behind_data = [(HEADER, 16, N, 1), (0x800, 513, W, 0)];
    let empty_piece = [(HEADER, 16, N, 1), (0, 0, N, 2), (0x700, 1, W, 0)];
    let both_ways = [(HEADER, 16, N, 1), (0x800, 512, N, 2), (0x900, 512, N | W, 3), (0x700, 1, W, 0)];
    assert_eq!(sort(&two, &[], false).0, None);
    for (chain, readable, writable) in [
        (&header_in_pieces[..], 0, 512),
        (&data_behind_header, 512, 0),
        (&status_behind_data, 0, 512),
        (&empty_piece, 0, 0),
        (&both_ways, 512, 512),
    ] {
        let (usual, sorted) = sort(chain, &[], false);
        let (sorted, segments) = sorted.expect("it is in order");
        assert_eq!(usual, None);
        assert!(sorted.is_usable() && sorted.status().is_some());
        assert_eq!((sorted.readable(&segments).1, sorted.writable(&segments).1), (readable, writable));
    }
}
