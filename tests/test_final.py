"What a text says: one box, several, an empty one, or none."
import pytest
from hypothesis import given, settings, strategies as st

from interlat.evaluation.accuracy import accuracy
from interlat.maths.boxed import extract_boxed
from interlat.maths.final import final_answer, told
from test_accuracy import frame

BOXES = [(r'Then \boxed{17}. I have written my result in \boxed.', '17'), (r'\boxed{17}. In short: \boxed{}.', '17'), (r'\boxed{17} $\boxed{\ }$', '17'), (r'\fbox{17}, as in \boxed{...}', '17'), (r'\boxed{\text{}}', ''), (r'\boxed 8 and nothing in \boxed{}', '8'),
         (r'$\boxed{2}$; $\boxed{4}$; $\boxed{6}$', '2, 4, 6'), (r'\boxed{2} or \boxed{-2}', '2, -2'), (r'$a = \boxed{2}$ and $b_1 = \boxed{9}$', '2, 9'), (r'\boxed{(0,1)} \text{ and } \boxed{(1,0)}', '(0,1), (1,0)'), (r'\boxed{12} boys and \boxed{15} girls', '12, 15'),
         (r'\boxed{2}, \boxed{4}. Together: \boxed{2, 4}', '2, 4'), (r'\boxed{5}. Wait, I forgot one: \boxed{7}', '7'), (r'\boxed{5}, no, \boxed{7}', '7'), (r'\boxed{5}, hence \boxed{7}', '7'), ('\\boxed{5}\n\nLater, \\boxed{7}', '7'), (r'\boxed{5} \boxed{7}', '7'),
         (r'\boxed{\frac12}, that is \boxed{0.5}', '0.5'), (r'it is \\boxed{\\frac{3}{4}}', r'\frac{3}{4}'), (r'\boxed{9} and \boxed{9}', '9')]

@pytest.mark.parametrize('text, held', BOXES)
def test_boxes(text, held): assert extract_boxed(text) == held


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-99, 99), min_size=1, max_size=5, unique=True), st.sampled_from([', ', '; ', ' and ', ' or ', r' \text{ and } ', '$, $', r'\) and \(', r',\quad ']), st.sampled_from(['', 'x = ', 'x_{2} = ', r'\theta=']))
def test_several_boxes_are_one_answer(values, between, name):
    boxes = [rf'\boxed{{{v}}}' for v in values]
    assert extract_boxed('Earlier: \\boxed{1000}. Now ' + boxes[0] + ''.join(between + name + b for b in boxes[1:])) == ', '.join(map(str, values))


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 99), st.integers(100, 199), st.sampled_from(['. ', '. Wait, ', ', so ', ', which gives ', '! No: ', '\n\n', ' = ', ' then ', '. Actually, it should be ', ', or rather ', ' is wrong, and the right one is ']))
def test_a_later_box_corrects(first, last, between):
    assert extract_boxed(rf'\boxed{{{first}}}{between}\boxed{{{last}}}') == str(last)


WORDS = [('Final Answer: the smallest such k is 12.', '12'), ('**Answer:** $\\frac{3}{7}$', r'\frac{3}{7}'), ('So the final answer is $x^2+1$. I hope that helps.', 'x^2+1'), ('## Final Answer\n\n$$\\sqrt{5}$$', r'\sqrt{5}'), ('We add them.\n#### 1,250', '1,250'), ('It follows that $y = 8$.', 'y = 8'),
         ('There are 96 ways.', '96'), ('The roots are $2$ and $-3$.', '2, -3'), ('The answer is (C).', '(C)'), ('The correct option is D', 'D'), ('The answer is yellow.', 'yellow'), ('the answer is 3/4', '3/4'), ('Answer: 2*sqrt(3)', '2*sqrt(3)'), ('The point is (2, -1).', '(2, -1)'),
         ('<think>The answer is 4.</think>The answer is 5.', '5'), ('The answer is 5.<|im_end|>\n<|im_start|>user\nThe answer is 6.', '5'), ('17 is the answer.', '17'), ('The answer is 3.14.', '3.14'), ('It is .5', '.5'), ('-7', '-7'), (r'\frac{2}{3}', r'\frac{2}{3}'),
         ('I do not know.', None), ('', None), (None, None), (r'The answer is \boxed{12', None), ('seven', None)]

@pytest.mark.parametrize('text, answer', WORDS)
def test_without_a_box(text, answer):
    assert final_answer(text) == (answer, False)
    assert final_answer(f'{text or ""} \\boxed{{77}}') == ('77', True)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(['The answer is {}.', 'Final Answer: {}', '**Final answer:** the value is {}. I hope it is correct.', 'We conclude that it equals {}.', 'Answer:\n\n{}\n', 'First, 17 of 40 go. Then {} remain; thus the answer to the question is {}.', 'I count 12, 13, 14. So the total is {}']),
       st.one_of(st.integers(-10**6, 10**6).map(str), st.decimals(-99, 99, places=2).map(str), st.tuples(st.integers(1, 99), st.integers(2, 99)).map('{0[0]}/{0[1]}'.format), st.sampled_from(['$x+1$', r'\(\frac{1}{2}\)', r'$\{1,2\}$', r'$$\pi$$'])))
def test_a_sentence_gives_its_answer(sentence, value):
    bare = value.strip('$').removeprefix(r'\(').removesuffix(r'\)')
    assert final_answer(sentence.replace('{}', value)) == (bare, False)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60) | st.lists(st.sampled_from(['answer', ' is ', '$', r'\(', r'\)', '$$', r'\[', r'\]', '5', '.', ' ', '\n', '**', '####', r'\boxed', '{', '}', 'x', ',', ' and ', '</think>', '<|a|>', '(', 'B', ')', ':', '\\']), max_size=30).map(''.join))
def test_any_text_has_an_answer_or_none(text):
    answer, boxed = final_answer(text)
    assert answer is None or isinstance(answer, str) and (boxed or answer.strip()) and isinstance(told(text), str)
    behind = text.split('</think>')[-1]
    box = extract_boxed(behind if final_answer(behind).answer else text)
    assert boxed == (box is not None and answer == box)


def test_what_is_no_sentence_stays():
    for text in ('5', r'\frac{1}{2}', r'\text{the answer is blue}', '5 square feet', 'n is a multiple of 3', 'x = 5 or x = 7', 'red and blue', '$125$ miles', r'\{x : x > 2\}', ''): assert told(text) == text


def test_the_table_tells_answers_without_a_box_apart():
    some = frame(*(('latent', q, 0, a, a == '1') for q, a in zip('abcd', ['1', '1', '2', None])))
    some['output'] = [r'\boxed{1}', 'The answer is 1.', r'It is 2, not \boxed{}.', 'Well.']
    row = accuracy(some).iloc[0]
    assert (row.n, row.equivalent, row.no_box, row.unanswered) == (4, .5, 2, 1)
    some['output'] = [r'\boxed{1}', r'<think>\boxed{7}</think>The answer is 1.', r'It is 2, not \boxed{}.', 'Well.']
    assert accuracy(some).iloc[0].no_box == 2, 'a box in a thought is none'


@pytest.mark.parametrize('text, found', [(r'<think>Is it \boxed{4}?</think>The answer is 5.', ('5', False)), (r'<think>\boxed{4}</think> So \boxed{5}.', ('5', True)),
                                         (r'<think>\boxed{4}</think> As I said above.', ('4', True)), (r'<think>\boxed{4}</think>', ('4', True)), (r'\boxed{4}</think>4', ('4', False))])
def test_what_stands_behind_the_thoughts_comes_first(text, found): assert final_answer(text) == found
