//! Charts as SVG: bars by category, lines over an axis, lines of steps over time, and heat maps.
//!
//! A [`Chart`] is plain data that can be kept as JSON. What it shows has error bars or bands where there is an interval, and hollow diamonds
//! where something was published. One chart has one text, on every machine: nothing is measured by a font that may or may not be there.
//!
//! Colours are those of Okabe and Ito (2008), which people tell apart who see fewer; lines differ by their marks too. Text, lines and
//! background have colours that nothing else has ([`INK`], [`MUTED`], [`GRID`], [`BACKGROUND`]), so that a page may give them others by
//! `svg [fill="#222222"]`.

mod draw;
mod heat;
mod marks;
mod scale;

use plotters::prelude::{IntoDrawingArea as _, SVGBackend};
use serde::{Deserialize, Serialize};

use draw::{Canvas, Layout};

pub use heat::{HEAT, HeatChart};
pub use scale::{exact, number};

/// Of titles, axes and outlines, as it stands in the SVG.
pub const INK: &str = "#222222";
/// Of labels.
pub const MUTED: &str = "#555555";
/// Of the lines behind the data.
pub const GRID: &str = "#E4E4E4";
/// Behind everything.
pub const BACKGROUND: &str = "#FFFFFF";

/// Width of every chart in pixels.
pub const WIDTH: u32 = 800;

/// What is to be drawn.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// How it is drawn.
    pub kind: Kind,
    /// From left to right.
    pub x: Axis,
    /// From bottom to top.
    pub y: Axis,
    /// As they stand in the legend.
    pub series: Vec<Series>,
    /// What intervals are; if empty, what holds the value in 95 of 100 cases.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub interval: String,
}

/// How data is drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// From zero, a group for each category.
    Bars,
    /// With a mark for each point.
    Lines,
    /// A value holds until the next.
    Steps,
}

/// One axis.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Axis {
    /// What it counts.
    pub title: String,
    /// In which unit; empty for words and pure numbers.
    pub unit: String,
    /// By factors rather than differences. What is not above zero lies at its end.
    pub log: bool,
    /// Words in their order, which points name by index; empty on an axis of numbers.
    pub categories: Vec<String>,
}

/// Points of one colour.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// By rising `x`.
    pub points: Vec<Mark>,
    /// What was published: x and y.
    pub published: Vec<[f64; 2]>,
}

/// A point.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Mark {
    /// A number, or the index of a category.
    pub x: f64,
    /// The value.
    pub y: f64,
    /// What holds it in 95 of 100 cases.
    pub interval: Option<[f64; 2]>,
}

impl Axis {
    /// An axis of words.
    pub fn of_words(title: impl Into<String>, words: Vec<String>) -> Self {
        Self {
            title: title.into(),
            categories: words,
            ..Self::default()
        }
    }

    /// An axis of numbers.
    pub fn of_numbers(title: impl Into<String>, unit: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            unit: unit.into(),
            ..Self::default()
        }
    }

    /// Title and unit: `total time (s)`.
    pub fn label(&self) -> String {
        match self.unit.as_str() {
            "" => self.title.clone(),
            unit => format!("{} ({unit})", self.title),
        }
    }
}

impl Mark {
    fn is_drawable(&self) -> bool {
        self.x.is_finite() && self.y.is_finite()
    }

    /// The interval, if it is wider than nothing.
    fn whiskers(&self) -> Option<[f64; 2]> {
        self.interval
            .filter(|[low, high]| low.is_finite() && high.is_finite() && low < high)
    }
}

impl Chart {
    /// The chart alone.
    pub fn to_svg(&self) -> String {
        charts_to_svg(std::slice::from_ref(self))
    }

    fn has_published(&self) -> bool {
        self.series.iter().any(|series| !series.published.is_empty())
    }

    fn has_intervals(&self) -> bool {
        let mut points = self.series.iter().flat_map(|series| &series.points);
        points.any(|point| point.whiskers().is_some())
    }
}

/// Charts, one below the other.
pub fn charts_to_svg(charts: &[Chart]) -> String {
    let layouts: Vec<(&Chart, Layout)> = charts.iter().map(|chart| (chart, Layout::of(chart))).collect();
    let height: i32 = layouts.iter().map(|(_, layout)| layout.height).sum();
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height.max(1).unsigned_abs())).into_drawing_area();
        let mut top = 0;
        for (chart, layout) in &layouts {
            draw::draw(&Canvas { area: &area, top }, chart, layout).expect("a string takes whatever is written");
            top += layout.height;
        }
        area.present().expect("a string takes whatever is written");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(x: f64, y: f64) -> Mark {
        Mark {
            x,
            y,
            interval: Some([y * 0.9, y * 1.1]),
        }
    }

    fn series(name: &str, values: &[(f64, f64)]) -> Series {
        Series {
            name: name.into(),
            points: values.iter().map(|&(x, y)| mark(x, y)).collect(),
            published: vec![[values[0].0, 1.05 * values[0].1]],
        }
    }

    fn bars() -> Chart {
        Chart {
            title: "Total time & data".into(),
            kind: Kind::Bars,
            x: Axis::of_words("strategy", vec!["1-hybrid".into(), "PA <new>".into()]),
            y: Axis::of_numbers("total time", "s"),
            series: vec![
                series("50MB/s", &[(0.0, 614.0), (1.0, 448.0)]),
                series("1250MB/s", &[(0.0, 614.0), (1.0, 17.9)]),
            ],
            interval: String::new(),
        }
    }

    fn lines(kind: Kind) -> Chart {
        Chart {
            kind,
            x: Axis::of_numbers("memory", "GiB"),
            series: vec![
                series("As", &[(8.0, 1.0), (16.0, 10.0), (32.0, 1000.0)]),
                series("none", &[(8.0, 0.0)]),
            ],
            ..bars()
        }
    }

    #[test]
    fn every_label_is_there_and_every_number_is_one() {
        let text = bars().to_svg();
        for label in [
            "Total time &amp; data",
            "1-hybrid",
            "PA &lt;new&gt;",
            "strategy",
            "total time (s)",
            "50MB/s",
            "1250MB/s",
            "published",
            "95 % interval",
            "17.9",
            "800",
        ] {
            assert!(text.contains(label), "{label}: {text}");
        }
        for chart in [bars(), lines(Kind::Lines), lines(Kind::Steps)] {
            for log in [false, true] {
                let mut chart = chart.clone();
                chart.y.log = log;
                chart.x.log = log && chart.x.categories.is_empty();
                let text = chart.to_svg();
                assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
                assert_eq!(text, chart.to_svg(), "one chart has one text");
                for coordinate in coordinates(&text) {
                    assert!((0..=1200).contains(&coordinate), "{coordinate} is outside: {text}");
                }
            }
        }
    }

    /// All of `x="…"`, `y="…"` and of points.
    fn coordinates(text: &str) -> Vec<i64> {
        let quoted = |name: &str| -> Vec<String> {
            let before = format!(" {name}=\"");
            let parts = text.split(&before).skip(1);
            parts.map(|part| part.split('"').next().unwrap().to_owned()).collect()
        };
        let names = [
            "x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height", "points",
        ];
        let all = names.map(quoted).concat().join(" ");
        let numbers = all.split([' ', ',']).filter(|number| !number.is_empty());
        numbers.map(|number| number.parse().unwrap()).collect()
    }

    /// A bar is as high as its value, and what was published stands out.
    #[test]
    fn marks_are_where_their_values_are() {
        let text = bars().to_svg();
        let all = |colour: &str| {
            let tags = text.split("<rect ").filter(|tag| tag.contains(colour));
            let heights = tags.map(|tag| tag.split("height=\"").nth(1).unwrap().split('"').next().unwrap());
            heights.map(|height| height.parse().unwrap()).collect::<Vec<f64>>()
        };
        let (first, second) = (all("#0072B2"), all("#E69F00"));
        assert_eq!((first.len(), second.len()), (3, 3), "two bars and the legend: {text}");
        assert!((first[0] / first[1] - 614.0 / 448.0).abs() < 0.02, "{first:?}");
        assert!((first[0] - second[0]).abs() < 0.5 && second[1] < 10.0, "{second:?}");
        let hollow = |text: &str| {
            text.split("<polygon ")
                .skip(1)
                .filter(|tag| tag.split("/>").next().unwrap().contains(BACKGROUND))
                .count()
        };
        assert_eq!(hollow(&text), 3, "two and the legend");
        assert_eq!(hollow(&lines(Kind::Lines).to_svg()), 3);
    }

    #[test]
    fn nothing_can_be_drawn() {
        let none = Chart {
            series: vec![],
            ..lines(Kind::Lines)
        };
        assert!(none.to_svg().contains("memory (GiB)"));
        let mut odd = lines(Kind::Lines);
        odd.series[0].points[1].y = f64::NAN;
        odd.series[0].points[2].interval = Some([f64::NEG_INFINITY, 3.0]);
        odd.series[1].published = vec![[f64::NAN, 1.0]];
        let text = odd.to_svg();
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    }

    #[test]
    fn charts_stand_below_one_another() {
        let both = charts_to_svg(&[bars(), lines(Kind::Lines)]);
        assert_eq!(both.matches("<svg").count(), 1);
        assert!(both.contains("1250MB/s") && both.contains("memory (GiB)"));
        let height = |text: &str| -> u32 {
            let from = text.split("height=\"").nth(1).unwrap();
            from.split('"').next().unwrap().parse().unwrap()
        };
        let apart = height(&bars().to_svg()) + height(&lines(Kind::Lines).to_svg());
        assert_eq!(height(&both), apart);
    }

    #[test]
    fn a_chart_is_kept_as_json() {
        let text = serde_json::to_string(&bars()).unwrap();
        assert_eq!(serde_json::from_str::<Chart>(&text).unwrap(), bars());
    }
}
