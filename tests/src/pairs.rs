//! All-pairs covers: the fewest rows (nearly) in which every two values of different factors meet at least once.
//! Most faults need one or two factors to show, so a cover finds them at a fraction of the cost of the whole product.

/// Rows over factors with `sizes[f]` values each; a row holds one value index per factor. Every pair of values of two
/// different factors stands in at least one row. Greedy and deterministic: same sizes, same rows.
///
/// With fewer than two factors the rows are the single values. Time grows with the square of the number of pairs.
///
/// # Panics
/// When a factor has no values.
pub fn cover(sizes: &[usize]) -> Vec<Vec<usize>> {
    assert!(
        sizes.iter().all(|&size| size > 0),
        "every factor needs at least one value"
    );
    if sizes.len() < 2 {
        return (0..sizes.first().copied().unwrap_or(0))
            .map(|value| vec![value])
            .collect();
    }
    let mut open = all_pairs(sizes);
    let mut rows = Vec::new();
    while let Some(&seed) = open.first() {
        let row = grow_row(sizes, seed, &open);
        open.retain(|pair| !pair.is_in(&row));
        rows.push(row);
    }
    rows
}

/// The whole product, last factor fastest.
pub fn product(sizes: &[usize]) -> Vec<Vec<usize>> {
    sizes.iter().fold(vec![vec![]], |rows, &size| {
        rows.iter()
            .flat_map(|row| (0..size).map(move |value| [row.as_slice(), &[value]].concat()))
            .collect()
    })
}

/// [`product`] when the whole matrix is asked for, or the [part](crate::capability::shard) of it that is; [`cover`] otherwise.
pub fn cover_or_product(sizes: &[usize]) -> Vec<Vec<usize>> {
    if crate::capability::full() {
        let (index, count) = crate::capability::shard();
        product(sizes).into_iter().skip(index - 1).step_by(count).collect()
    } else {
        cover(sizes)
    }
}

/// One value of one factor and one of a later factor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pair {
    first: (usize, usize),
    second: (usize, usize),
}

impl Pair {
    fn is_in(&self, row: &[usize]) -> bool {
        row[self.first.0] == self.first.1 && row[self.second.0] == self.second.1
    }
}

fn all_pairs(sizes: &[usize]) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for f in 0..sizes.len() {
        for g in f + 1..sizes.len() {
            for a in 0..sizes[f] {
                pairs.extend((0..sizes[g]).map(|b| Pair {
                    first: (f, a),
                    second: (g, b),
                }));
            }
        }
    }
    pairs
}

/// A row with the pair `seed`, each further factor set to the value that meets most pairs still open.
fn grow_row(sizes: &[usize], seed: Pair, open: &[Pair]) -> Vec<usize> {
    let mut row: Vec<Option<usize>> = vec![None; sizes.len()];
    row[seed.first.0] = Some(seed.first.1);
    row[seed.second.0] = Some(seed.second.1);
    for factor in 0..sizes.len() {
        if row[factor].is_some() {
            continue;
        }
        let gain = |value: usize| {
            let meets = |(f, v): (usize, usize)| if f == factor { v == value } else { row[f] == Some(v) };
            let touches = |pair: &&Pair| pair.first.0 == factor || pair.second.0 == factor;
            open.iter()
                .filter(touches)
                .filter(|pair| meets(pair.first) && meets(pair.second))
                .count()
        };
        // The least index among equals keeps the result stable.
        let best = (0..sizes[factor]).rev().max_by_key(|&value| gain(value));
        row[factor] = best;
    }
    row.into_iter()
        .map(|value| value.expect("every factor was set above"))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn uncovered(sizes: &[usize], rows: &[Vec<usize>]) -> Vec<Pair> {
        all_pairs(sizes)
            .into_iter()
            .filter(|pair| !rows.iter().any(|row| pair.is_in(row)))
            .collect()
    }

    proptest! {
        #[test]
        fn every_pair_is_covered(sizes in prop::collection::vec(1_usize..7, 2..6)) {
            let rows = cover(&sizes);
            prop_assert_eq!(uncovered(&sizes, &rows), vec![]);
            prop_assert!(rows.iter().all(|row| row.iter().zip(&sizes).all(|(value, size)| value < size)));
            prop_assert!(rows.len() <= product(&sizes).len());
        }
    }

    #[test]
    fn the_oracle_matrix_needs_half_of_its_product() {
        let sizes = [5, 6, 2];
        assert_eq!(product(&sizes).len(), 60);
        assert_eq!(cover(&sizes).len(), 30, "no fewer than the two largest factors need");
    }

    #[test]
    fn many_two_valued_factors_need_few_rows() {
        let rows = cover(&[2; 10]).len();
        assert!(rows <= 14, "{rows} rows instead of 1024");
    }

    #[test]
    fn the_product_counts_in_order() {
        assert_eq!(product(&[2, 2]), [[0, 0], [0, 1], [1, 0], [1, 1]]);
        assert_eq!(product(&[]), [[0_usize; 0]]);
    }

    #[test]
    fn one_factor_is_listed() {
        assert_eq!(cover(&[3]), [[0], [1], [2]]);
        assert_eq!(cover(&[]), Vec::<Vec<usize>>::new());
    }
}
