//! Who knows whom: an arrow from a file to each file whose items it names.
//!
//! - What a file names through a facade is an arrow to the file that defines it. A module that declares its children and passes
//!   their names on knows nothing, and nobody knows it.
//! - A macro's call may define names. So a name that a module is said to have, and that its text does not define, is its file's.
//! - Methods do not count, since their type is named somewhere: a type whose methods lie in several files is one thing.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Module, Source};

/// From one file to another: the names that the first takes from the second.
pub(crate) type Arrows = BTreeMap<(usize, usize), BTreeSet<String>>;

/// Re-exports of re-exports are followed so far; two `*` that name each other would never end.
const STEPS_MAX: usize = 12;

/// What a path leads to.
enum Target {
    Module(usize),
    Item {
        file: usize,
        name: String,
    },
    /// Another crate, the language, or a local variable.
    Outside,
}

/// All arrows of a crate.
pub(crate) fn arrows(source: &Source) -> Arrows {
    let mut arrows = Arrows::new();
    for (index, module) in source.modules.iter().enumerate().filter(|(_, module)| !module.test) {
        let used = module.imports.iter().filter(|import| !import.passed_on && import.name.is_some());
        for path in used.map(|import| &import.path).chain(&module.paths) {
            if let Target::Item { file, name } = resolve(source, index, path, 0)
                && file != module.file
            {
                arrows.entry((module.file, file)).or_default().insert(name);
            }
        }
    }
    arrows
}

/// What `path` means in a module.
fn resolve(source: &Source, module: usize, path: &[String], steps: usize) -> Target {
    let Some((first, rest)) = path.split_first() else { return Target::Module(module) };
    let start = match first.as_str() {
        "crate" => 0,
        "self" => module,
        "super" => source.modules[module].parent,
        name => match find(source, module, name, rest.is_empty(), steps) {
            Some(Target::Module(child)) => child,
            Some(target) => return target,
            None => return Target::Outside,
        },
    };
    member(source, start, rest, steps)
}

/// What the rest of a path means, that has led to a module.
fn member(source: &Source, module: usize, rest: &[String], steps: usize) -> Target {
    let Some((first, rest)) = rest.split_first() else { return Target::Module(module) };
    if first == "super" {
        return member(source, source.modules[module].parent, rest, steps);
    }
    match find(source, module, first, rest.is_empty(), steps) {
        Some(Target::Module(child)) => member(source, child, rest, steps),
        Some(target) => target,
        None => Target::Item { file: source.modules[module].file, name: first.clone() },
    }
}

/// What a name means in a module. `last`: nothing follows in its path, so that an item goes before a module of the same name.
fn find(source: &Source, index: usize, name: &str, last: bool, steps: usize) -> Option<Target> {
    if steps == STEPS_MAX {
        return None;
    }
    let module = &source.modules[index];
    let item = || Target::Item { file: module.file, name: name.into() };
    let defined = module.defines.contains(name);
    if defined && last {
        return Some(item());
    }
    if let Some(&child) = module.children.get(name) {
        return Some(Target::Module(child));
    }
    if defined {
        return Some(item());
    }
    let named = module.imports.iter().filter(|import| import.name.as_deref() == Some(name));
    let mut found = None;
    for import in named {
        let target = resolve_import(source, index, &import.path, steps + 1);
        // A `use` may bring a module and an item of one name.
        let better = match target {
            Target::Module(_) => !last,
            Target::Item { .. } => last,
            Target::Outside => false,
        };
        if found.is_none() || better {
            found = Some(target);
        }
    }
    found.or_else(|| find_by_globs(source, module, index, name, last, steps + 1))
}

/// As [`resolve`], for a `use`, which does not mean itself.
fn resolve_import(source: &Source, module: usize, path: &[String], steps: usize) -> Target {
    let own = &source.modules[module];
    let first = path.first().map_or("", String::as_str);
    let inside = matches!(first, "crate" | "self" | "super") || own.children.contains_key(first);
    let local = own.imports.iter().any(|import| import.name.as_deref() == Some(first) && import.path != path);
    if inside || local || own.defines.contains(first) {
        resolve(source, module, path, steps)
    } else {
        Target::Outside
    }
}

fn find_by_globs(
    source: &Source,
    module: &Module,
    index: usize,
    name: &str,
    last: bool,
    steps: usize,
) -> Option<Target> {
    let globs = module.imports.iter().filter(|import| import.name.is_none());
    globs.into_iter().find_map(|glob| match resolve_import(source, index, &glob.path, steps) {
        Target::Module(from) if from != index => find(source, from, name, last, steps),
        _ => None,
    })
}
