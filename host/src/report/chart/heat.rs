//! Heat maps as SVG: how much there was by time and place.

use plotters::prelude::{IntoDrawingArea as _, RGBColor, SVGBackend};
use plotters::style::text_anchor::{HPos, VPos};

use super::draw::{BACKGROUND, Canvas, Drawn, INK, LINE, MARGIN, TEXT_PIXELS, TITLE_PIXELS, style, width, wrapped};
use super::scale::{Scale, number};
use super::{Axis, WIDTH};
use crate::report::blocks::levels;

/// From little to much; nothing is the background. A page may give them others, as with [`super::INK`].
pub const HEAT: [&str; 6] = ["#DEEBF7", "#B5D0EA", "#7FB2DB", "#4A8FC7", "#1F66A6", "#08306B"];
const COLOURS: [RGBColor; 6] = [
    RGBColor(0xDE, 0xEB, 0xF7),
    RGBColor(0xB5, 0xD0, 0xEA),
    RGBColor(0x7F, 0xB2, 0xDB),
    RGBColor(0x4A, 0x8F, 0xC7),
    RGBColor(0x1F, 0x66, 0xA6),
    RGBColor(0x08, 0x30, 0x6B),
];

const PLOT_HEIGHT: i32 = 320;
/// About so many labels at the rows.
const LABELS: usize = 8;
/// The side of a square in the legend.
const SQUARE: i32 = 14;

/// What is to be drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct HeatChart {
    /// What it shows.
    pub title: String,
    /// From left to right, of numbers from 0 on.
    pub x: Axis,
    /// How much of `x` a column is.
    pub column: f64,
    /// From bottom to top: what the rows are.
    pub y: String,
    /// The name of each row, lowest first.
    pub rows: Vec<String>,
    /// What the cells count, as the legend has it.
    pub counts: String,
    /// What one count of a cell is of that.
    pub each: f64,
    /// A list for each column, with a count for each row.
    pub cells: Vec<Vec<u64>>,
}

impl HeatChart {
    /// The chart alone. One chart has one text.
    pub fn to_svg(&self) -> String {
        let title = wrapped(&self.title, TITLE_PIXELS, WIDTH as i32 - 2 * MARGIN);
        let top = MARGIN + (LINE + 2) * title.len() as i32 + 8;
        let height = top + PLOT_HEIGHT + 10 + 2 * LINE + 14 + 2 * LINE + MARGIN;
        let mut text = String::new();
        {
            let area = SVGBackend::with_string(&mut text, (WIDTH, height.unsigned_abs())).into_drawing_area();
            let canvas = Canvas { area: &area, top: 0 };
            self.draw(&canvas, &title, top, height)
                .expect("a string takes whatever is written");
            area.present().expect("a string takes whatever is written");
        }
        text
    }

    fn draw(&self, canvas: &Canvas<'_, '_>, title: &[String], top: i32, height: i32) -> Drawn {
        let widest = self.rows.iter().map(|row| width(row, TEXT_PIXELS)).max().unwrap_or(0);
        let (left, right) = (MARGIN + LINE + 6 + widest + 8, WIDTH as i32 - MARGIN);
        let bottom = top + PLOT_HEIGHT;
        canvas.rectangle([0, 0], [WIDTH as i32, height], BACKGROUND)?;
        for (index, line) in (0..).zip(title) {
            let at = [MARGIN, MARGIN + index * (LINE + 2)];
            canvas.write(line, at, style(TITLE_PIXELS, HPos::Left, VPos::Top, true))?;
        }
        let levels = levels(self.cells.iter().flatten().copied(), COLOURS.len());
        let across = |column: usize| left + (right - left) * column as i32 / self.cells.len().max(1) as i32;
        let up = |row: usize| bottom - PLOT_HEIGHT * row as i32 / self.rows.len().max(1) as i32;
        for (column, cells) in self.cells.iter().enumerate() {
            let class = |row: usize| match cells[row] {
                0 => 0,
                count => levels.iter().filter(|level| count >= **level).count(),
            };
            let mut row = 0;
            while row < cells.len() {
                // Neighbours of one colour are one rectangle.
                let from = row;
                while row < cells.len() && class(row) == class(from) {
                    row += 1;
                }
                if let Some(colour) = class(from).checked_sub(1) {
                    canvas.rectangle(
                        [across(column), up(row)],
                        [across(column + 1), up(from)],
                        COLOURS[colour],
                    )?;
                }
            }
        }
        canvas.line(&[[left, top], [left, bottom], [right, bottom]], INK, 1)?;
        let step = self.rows.len().div_ceil(LABELS).max(1);
        for (row, name) in self.rows.iter().enumerate().step_by(step) {
            let y = (up(row) + up(row + 1)) / 2;
            canvas.line(&[[left - 4, y], [left, y]], INK, 1)?;
            canvas.write(
                name,
                [left - 8, y],
                style(TEXT_PIXELS, HPos::Right, VPos::Center, false),
            )?;
        }
        let end = self.column * self.cells.len().max(1) as f64;
        let scale = Scale::around(&[0.0, end], false, 0.0, [left, right]);
        for (value, text) in scale.ticks() {
            let x = scale.at(value);
            canvas.line(&[[x, bottom], [x, bottom + 4]], INK, 1)?;
            canvas.write(
                &text,
                [x, bottom + 8],
                style(TEXT_PIXELS, HPos::Center, VPos::Top, false),
            )?;
        }
        let middle = [(left + right) / 2, bottom + 10 + LINE];
        canvas.write(
            &self.x.label(),
            middle,
            style(TEXT_PIXELS, HPos::Center, VPos::Top, true),
        )?;
        let upright =
            style(TEXT_PIXELS, HPos::Center, VPos::Top, true).transform(plotters::prelude::FontTransform::Rotate270);
        canvas.write(&self.y, [MARGIN - 6, (top + bottom) / 2], upright)?;
        self.legend(canvas, &levels, [left, height - MARGIN - LINE / 2])
    }

    /// Each colour with the least that it stands for.
    fn legend(&self, canvas: &Canvas<'_, '_>, levels: &[u64], [left, y]: [i32; 2]) -> Drawn {
        let name = [left, y - LINE - 3];
        canvas.write(&self.counts, name, style(TEXT_PIXELS, HPos::Left, VPos::Center, true))?;
        let mut x = left;
        for (colour, level) in COLOURS.into_iter().zip(levels) {
            let text = format!("from {}", number(*level as f64 * self.each));
            canvas.rectangle([x, y - SQUARE / 2], [x + SQUARE, y + SQUARE / 2], colour)?;
            let at = [x + SQUARE + 5, y];
            canvas.write(&text, at, style(TEXT_PIXELS, HPos::Left, VPos::Center, false))?;
            x += SQUARE + 5 + width(&text, TEXT_PIXELS) + 16;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> HeatChart {
        HeatChart {
            title: "Where & when".into(),
            x: Axis::of_numbers("time", "s"),
            column: 0.5,
            y: "address".into(),
            rows: (0..16).map(|row| format!("{:#x}", row << 20)).collect(),
            counts: "writes/s".into(),
            each: 2.0,
            cells: (0..40)
                .map(|column| (0..16).map(|row| if row == 3 { column * 100 } else { 0 }).collect())
                .collect(),
        }
    }

    #[test]
    fn cells_have_the_colour_of_their_count() {
        let text = chart().to_svg();
        for label in [
            "Where &amp; when",
            "time (s)",
            "address",
            "0x400000",
            "writes/s",
            "from 2",
            "20",
        ] {
            assert!(text.contains(label), "{label}: {text}");
        }
        let rectangles = |colour: &str| text.matches(&format!("fill=\"{colour}\"")).count();
        // The first column is empty; every other has one cell, and the legend one of each colour.
        let all: usize = HEAT.iter().map(|colour| rectangles(colour)).sum();
        assert_eq!(all, 39 + 6);
        assert!(rectangles(HEAT[5]) > rectangles(HEAT[4]));
        assert_eq!(text, chart().to_svg());
    }

    #[test]
    fn nothing_can_be_drawn() {
        for cells in [vec![], vec![vec![0; 16]]] {
            let text = HeatChart { cells, ..chart() }.to_svg();
            assert!(text.contains("address") && !text.contains("NaN"), "{text}");
        }
    }
}
