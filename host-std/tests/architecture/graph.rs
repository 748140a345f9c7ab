//! Circles and floors of a graph of files.

use std::collections::BTreeMap;

use petgraph::algo::tarjan_scc;
use petgraph::graphmap::DiGraphMap;

use crate::arrows::Arrows;

/// Files that know each other, and the floors of all.
pub(crate) struct Graph {
    /// Each set of two or more files from each of which arrows lead to each other.
    pub(crate) circles: Vec<Vec<usize>>,
    /// From the bottom up: a file lies above all that it knows. Those of a circle share a floor.
    pub(crate) floors: Vec<Vec<usize>>,
}

impl Graph {
    /// The graph of `files` files.
    pub(crate) fn new(files: usize, arrows: &Arrows) -> Self {
        let mut graph = DiGraphMap::<usize, ()>::from_edges(arrows.keys().copied());
        (0..files).for_each(|file| {
            graph.add_node(file);
        });
        let mut floor_of = BTreeMap::new();
        let (mut circles, mut floors) = (Vec::new(), Vec::new());
        // What a component knows comes before it.
        for mut component in tarjan_scc(&graph) {
            let below = component.iter().flat_map(|&file| graph.neighbors(file));
            let floor =
                below.filter_map(|file| floor_of.get(&file)).max().map_or(0, |&floor: &usize| floor + 1);
            component.iter().for_each(|&file| {
                floor_of.insert(file, floor);
            });
            if floors.len() <= floor {
                floors.resize(floor + 1, Vec::new());
            }
            floors[floor].extend(&component);
            if component.len() > 1 {
                component.sort_unstable();
                circles.push(component);
            }
        }
        circles.sort();
        floors.iter_mut().for_each(|floor: &mut Vec<usize>| floor.sort_unstable());
        Self { circles, floors }
    }
}
