//! A crate as its files say it: a tree of modules, and in each the names that it defines, imports and uses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Meta, UseTree, Visibility};

/// A path as it is written: `crate::backend::Counts`.
pub(crate) type Words = Vec<String>;

/// A crate.
pub(crate) struct Source {
    /// Its files, relative to its folder. The root is the first.
    pub(crate) files: Vec<PathBuf>,
    /// Its modules. The root is the first.
    pub(crate) modules: Vec<Module>,
}

/// A module: a file, or a part of one.
pub(crate) struct Module {
    /// Its name from the root, as in `backend::image`; empty for the root.
    pub(crate) name: String,
    /// Index of its file.
    pub(crate) file: usize,
    /// Index of the module that declares it; the root's is itself.
    pub(crate) parent: usize,
    /// Compiled for tests only.
    pub(crate) test: bool,
    pub(crate) children: BTreeMap<String, usize>,
    pub(crate) defines: BTreeSet<String>,
    pub(crate) imports: Vec<Import>,
    /// The paths in its code, imports apart.
    pub(crate) paths: BTreeSet<Words>,
}

/// One name of a `use`.
pub(crate) struct Import {
    pub(crate) path: Words,
    /// The name that it gives; `None` for a `*`.
    pub(crate) name: Option<String>,
    /// Whether others may import it from here, too. A module that only passes a name on does not use it.
    pub(crate) passed_on: bool,
}

impl Source {
    /// Reads a crate, from its root file on.
    pub(crate) fn read(folder: &Path, root: &str) -> Self {
        let mut source = Self { files: Vec::new(), modules: Vec::new() };
        let file = folder.join(root);
        let below = file.parent().expect("a file lies in a folder").to_path_buf();
        source.read_file(folder, &file, &below, String::new(), 0, false);
        source
    }

    /// Whether a file is compiled for tests only.
    pub(crate) fn is_test(&self, file: usize) -> bool {
        self.modules.iter().filter(|module| module.file == file).all(|module| module.test)
    }

    fn read_file(
        &mut self,
        folder: &Path,
        file: &Path,
        below: &Path,
        name: String,
        parent: usize,
        test: bool,
    ) -> usize {
        let text =
            std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.files.push(file.strip_prefix(folder).expect("below the folder").to_path_buf());
        let place = Place { folder, below, file: self.files.len() - 1 };
        self.read_module(&place, name, parent, test, &parsed.items)
    }

    fn read_module(
        &mut self,
        place: &Place<'_>,
        name: String,
        parent: usize,
        test: bool,
        items: &[Item],
    ) -> usize {
        let index = self.modules.len();
        let mut module = Module {
            name,
            file: place.file,
            parent,
            test,
            children: BTreeMap::new(),
            defines: BTreeSet::new(),
            imports: Vec::new(),
            paths: BTreeSet::new(),
        };
        for item in items {
            if !matches!(item, Item::Mod(_)) && !for_tests(attributes(item)) {
                module.defines.extend(defined(item));
                Reader { module: &mut module }.visit_item(item);
            }
        }
        self.modules.push(module);
        for item in items {
            let Item::Mod(child) = item else { continue };
            let word = child.ident.to_string();
            let prefix = &self.modules[index].name;
            let name = if prefix.is_empty() { word.clone() } else { format!("{prefix}::{word}") };
            let test = test || for_tests(&child.attrs);
            let below = place.below.join(&word);
            let child = if let Some((_, items)) = &child.content {
                self.read_module(&Place { below: &below, ..*place }, name, index, test, items)
            } else {
                let (alone, folder) = (below.with_extension("rs"), below.join("mod.rs"));
                let file = if alone.exists() { alone } else { folder };
                self.read_file(place.folder, &file, &below, name, index, test)
            };
            self.modules[index].children.insert(word, child);
        }
        index
    }
}

/// Where a module is written.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// The crate's folder.
    folder: &'a Path,
    /// Where the files of its children lie.
    below: &'a Path,
    file: usize,
}

/// Collects the imports and the paths of a module.
struct Reader<'a> {
    module: &'a mut Module,
}

impl Reader<'_> {
    fn import(&mut self, tree: &UseTree, path: &mut Words, passed_on: bool) {
        let (word, name) = match tree {
            UseTree::Path(step) => {
                path.push(step.ident.to_string());
                self.import(&step.tree, path, passed_on);
                path.pop();
                return;
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.import(tree, path, passed_on));
                return;
            }
            UseTree::Glob(_) => (None, None),
            UseTree::Rename(rename) => (Some(rename.ident.to_string()), Some(rename.rename.to_string())),
            UseTree::Name(name) if name.ident == "self" => (None, path.last().cloned()),
            UseTree::Name(name) => (Some(name.ident.to_string()), Some(name.ident.to_string())),
        };
        let path = path.iter().cloned().chain(word).collect();
        self.module.imports.push(Import { path, name, passed_on });
    }

    /// The paths in the tokens of a macro, or of its call: words between which there is `::`. A `$name` after one stands for
    /// whatever the module has.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path = Words::new();
        let mut before = [' '; 2];
        for token in tokens {
            let mut now = ' ';
            let joined = before == [':', ':'];
            match token {
                TokenTree::Ident(word) if before[1] == '$' && word != "crate" => {}
                TokenTree::Ident(word) => {
                    if !joined {
                        self.use_path(std::mem::take(&mut path));
                    }
                    if before[1] != '.' && (joined != path.is_empty()) {
                        path.push(word.to_string());
                    }
                }
                TokenTree::Punct(punct) => {
                    now = punct.as_char();
                    if now == '$' && joined && !path.is_empty() {
                        path.push(now.into());
                    }
                }
                TokenTree::Group(group) => self.tokens(group.stream()),
                TokenTree::Literal(_) => {}
            }
            before = [before[1], now];
        }
        self.use_path(path);
    }

    fn use_path(&mut self, path: Words) {
        if !path.is_empty() {
            self.module.paths.insert(path);
        }
    }
}

impl<'a> Visit<'a> for Reader<'_> {
    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        let passed_on = !matches!(item.vis, Visibility::Inherited);
        self.import(&item.tree, &mut Words::new(), passed_on);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        self.use_path(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'a syn::Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone());
    }

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        if !for_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    // `pub(in path)` and `#[path]` use nothing.
    fn visit_vis_restricted(&mut self, _: &'a syn::VisRestricted) {}
    fn visit_attribute(&mut self, _: &'a Attribute) {}
}

/// Whether an item is compiled for tests only.
fn for_tests(attributes: &[Attribute]) -> bool {
    let needs_test = |tokens: TokenStream| {
        let words: Vec<String> = tokens.into_iter().map(|token| token.to_string()).collect();
        match words.first().map(String::as_str) {
            Some("test") => true,
            Some("all") => words.get(1).is_some_and(|list| list.contains("test")),
            _ => false,
        }
    };
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => needs_test(list.tokens.clone()),
        _ => false,
    })
}

/// The name that an item defines in its module.
fn defined(item: &Item) -> Option<String> {
    let word = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(word.to_string())
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
