//! What is explored and what is not, in the words of PROOF.md.

const PAGE: &str = include_str!("../../PROOF.md");

/// A point of a list: its title, and what it says.
pub(super) struct Point {
    pub(super) title: String,
    pub(super) text: String,
}

/// What the explorer tries.
pub(super) fn explored() -> Vec<Point> {
    points(PAGE, "What is explored")
}

/// What it does not try, or takes for granted.
pub(super) fn not_explored() -> Vec<Point> {
    points(PAGE, "What is not explored")
}

/// The list below a heading: `- **Title.** Text`, on one line or more.
fn points(page: &str, heading: &str) -> Vec<Point> {
    let section = page.split("\n## ").find_map(|section| section.strip_prefix(heading)?.strip_prefix('\n'));
    let items = section.unwrap_or_default().split("\n- **").skip(1);
    let point = |item: &str| {
        let (title, text) = item.split_once(".** ")?;
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ").replace('`', "");
        Some(Point { title: title.into(), text })
    };
    items.filter_map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_found_below_its_heading_and_ends_with_it() {
        let page = "# Page\n\n## One\n\n- **A.** B `c`\n  d.\n- **E.** F.\n\n## One more\n\n- **G.** H.\n";
        let found: Vec<_> = points(page, "One").into_iter().map(|point| (point.title, point.text)).collect();
        assert_eq!(found, [("A", "B c d."), ("E", "F.")].map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn the_page_has_both_lists() {
        for list in [explored(), not_explored()] {
            assert!(list.len() >= 5, "{}", list.len());
            assert!(list.iter().all(|point| !point.text.contains("**")));
        }
    }
}
