//! Pages of HTML that need nothing beside themselves: one file, no script, nothing fetched, light and dark.

mod prediction;
mod trace;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::Chart;
use super::trace_charts::Figure;

pub use trace::{PageParts, trace_page};

const STYLE: &str = include_str!("page.css");

/// A page. `style` comes after the common one.
pub fn page(title: &str, style: &str, body: &Markup) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) }
                style { (PreEscaped(STYLE)) (PreEscaped(style)) }
            }
            body { (body) }
        }
    };
    page.into_string()
}

/// A chart inside a page.
pub fn figure(chart: &Chart) -> Markup {
    drawing(&chart.title, &chart.to_svg(), None)
}

/// A chart with what has to be said below it.
fn captioned(figure: &Figure) -> Markup {
    drawing(&figure.title, &figure.svg, Some(&figure.caption))
}

fn drawing(title: &str, svg: &str, caption: Option<&str>) -> Markup {
    // Inside a page an SVG needs no namespace, and nothing on the page looks as if it were fetched.
    let svg = svg.replacen(" xmlns=\"http://www.w3.org/2000/svg\"", " role=\"img\"", 1);
    html! {
        figure aria-label=(title) {
            (PreEscaped(svg))
            @if let Some(caption) = caption { figcaption { (caption) } }
        }
    }
}
