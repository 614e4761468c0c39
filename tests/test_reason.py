"Latent reasoning against a slow reference: one prompt, no cache, no padding; and what a student begins from, is kept as, and collects."
import copy, json, warnings

import cast, numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from torch.testing import assert_close

from interlat.core.basics import InterlatError
from interlat.models.lm import Agent
from interlat.models.cache import way_on
from interlat.models.chat import encode_chat, plan_token_ids
from interlat.models.lora import add_lora
from interlat.messages.message import LatentMessage, MessageStore
from interlat.compression.reason import FEEDBACKS, LatentStudent, calibrate, collect_latents, embedding_table, latent_reason, left_padded, realignment
from interlat.core.tasks import Task

PROMPTS = [[8, 33, 5, 19, 40, 7, 7, 12, 28, 3, 45, 21, 9, 30], [17], [4, 44, 16], [11, 3, 29, 6, 38, 25], [20, 13, 48, 9, 31, 14, 22, 5, 47]] # of 14, 1, 3, 6 and 9 tokens
FAMILIES = dict(qwen2={}, llama={}, tied_qwen2=dict(tie_word_embeddings=True), tied_llama=dict(tie_word_embeddings=True), mistral=dict(sliding_window=4), # a window shorter than most prompts
                mixed_qwen2=dict(use_sliding_window=True, sliding_window=4, layer_types=['full_attention', 'sliding_attention']), gpt2={}, # positions are a table
                gpt_neox={}, gemma3_text=dict(head_dim=8, sliding_window=4, layer_types=['sliding_attention', 'full_attention'])) # its embeddings are scaled


def lm(name='qwen2', **kw): return cast.random_lm(name.rpartition('_')[2] if name.startswith(('tied', 'mixed')) else name, **{**FAMILIES.get(name, {}), **kw})
def exact(name): return lm(name).double() # loud random models blow float32's rounding up


def student(base, feedback='projection', **kw):
    "A student whose projection is nobody's identity."
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter('ignore') # tied embeddings under ridge
        torch.manual_seed(0)
        s = LatentStudent(base, feedback, **kw)
    g = torch.Generator().manual_seed(1)
    for p in (*getattr(s, 'projection', torch.nn.Identity()).parameters(), *(s.output_proj.parameters() if s.output_proj else ())):
        p.data += .3*torch.randn(p.shape, generator=g)
    return s


def slow(s, prompt, K):
    "The K states after one prompt; every step reads all that came before again."
    x, states = s.lm.get_input_embeddings()(torch.tensor([prompt])), []
    for _ in range(K + 1):
        states.append(s.lm.base_model(inputs_embeds=x, use_cache=False)[0][:, -1])
        x = torch.cat([x, s.feed(states[-1])[:, None]], 1)
    z = torch.stack(states[1:], 1)[0]
    return z if s.output_proj is None else s.output_proj(z)


def padded(prompts, sides, extra=0):
    "Prompts as a tokenizer would return them; each row's padding is 'left', 'right', 'both' or within."
    T = max(map(len, prompts)) + extra
    ids, mask = torch.full((len(prompts), T), 49), torch.zeros(len(prompts), T, dtype=torch.long)
    for i, (p, side) in enumerate(zip(prompts, sides)):
        free = T - len(p)
        at = dict(left=list(range(free, T)), right=list(range(len(p))), both=list(range(free//2, free//2 + len(p))), within=[*range(len(p)//2), *range(T - (len(p) - len(p)//2), T)])[side]
        ids[i, at], mask[i, at] = torch.tensor(p), 1
    return dict(input_ids=ids, attention_mask=mask)


@pytest.fixture
def float64():
    with cast.exact(): yield


@torch.no_grad()
@pytest.mark.parametrize('name', FAMILIES)
def test_states_are_those_of_the_reference_for_any_batch_and_padding(name, float64):
    base = exact(name)
    for feedback in FEEDBACKS:
        s = student(base, feedback, output_size=12)
        wanted = torch.stack([slow(s, p, 6) for p in PROMPTS])
        assert_close(latent_reason(s, padded(PROMPTS, ['right', 'left', 'both', 'within', 'left']), 6), wanted, atol=1e-9, rtol=0)
        assert wanted.std() > .1
    for n in range(1, len(PROMPTS) + 1): assert_close(latent_reason(s, PROMPTS[-n:], 6), wanted[-n:], atol=1e-9, rtol=0)
    for side in ('left', 'right', 'both', 'within'): assert_close(latent_reason(s, padded(PROMPTS, [side]*5, extra=3), 6), wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize('name', FAMILIES)
def test_gradients_are_those_of_the_reference(name, float64):
    "Through every step, the cache and both linear layers, with padding in the batch."
    s = student(exact(name), output_size=12)
    mine = [p for p in s.parameters() if p.requires_grad]
    weight = torch.randn(len(PROMPTS), 4, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    def gradient(z): return torch.autograd.grad((weight*z).sum(), mine)
    for found, wanted in zip(gradient(latent_reason(s, PROMPTS, 4)), gradient(torch.stack([slow(s, p, 4) for p in PROMPTS]))):
        assert_close(found, wanted, atol=1e-6*wanted.abs().max().item() + 1e-9, rtol=0)


def test_gradients_are_finite_differences():
    s = student(lm('gpt_neox').double(), output_size=5).double() # its norms stay in float64
    def loss(): return latent_reason(s, PROMPTS[1:4], 3).pow(2).sum()
    for p in (s.projection[0].weight, s.projection[1].weight, s.output_proj.bias, s.lm.get_input_embeddings().weight, s.lm.base_model.layers[0].attention.query_key_value.weight):
        loss().backward()
        at, eps = p.grad.abs().argmax(), 1e-5
        with torch.no_grad():
            flat, ends = p.view(-1), []
            for step in (eps, -2*eps): flat[at] += step; ends.append(loss().item())
            flat[at] += eps
        assert (ends[0] - ends[1])/(2*eps) == pytest.approx(p.grad.view(-1)[at].item(), rel=1e-6)
        s.zero_grad()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(3, 48), min_size=1, max_size=9), st.sampled_from(['left', 'right', 'both', 'within'])), min_size=1, max_size=5), st.integers(1, 4), st.integers(0, 3))
def test_company_and_padding_change_no_message(rows, K, extra):
    with cast.exact(), torch.no_grad():
        s = student(exact('mistral'), K=K)
        z, wanted = latent_reason(s, padded(*zip(*rows), extra)), torch.stack([slow(s, p, K) for p, _ in rows])
    assert_close(z, wanted, atol=1e-9, rtol=0)


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6).filter(any), min_size=1, max_size=4))
def test_left_padding_keeps_the_tokens_and_their_order(mask):
    mask = torch.tensor(mask)
    ids = torch.arange(3, 3 + mask.numel()).view(mask.shape)
    found, real = left_padded(dict(input_ids=ids, attention_mask=mask))
    assert found.shape[1] == mask.sum(1).max() and all(f[r.bool()].tolist() == i[m].tolist() for f, r, i, m in zip(found, real, ids, mask))
    assert (real.diff(dim=1) >= 0).all() and real.dtype == torch.long


@torch.no_grad()
def test_k_passes_after_one_over_the_prompt():
    s, seen = student(lm()), []
    assert way_on(s.lm) == 'holes' # tried already
    s.lm.base_model.register_forward_hook(lambda m, args, kw, out: seen.append(tuple(out[0].shape[:2])), with_kwargs=True)
    z = latent_reason(s, PROMPTS, 5)
    assert seen == [(5, 14)] + [(5, 1)]*5
    assert_close(latent_reason(s, PROMPTS, 1), z[:, :1]) # fewer states are the first of more
    assert latent_reason(s, PROMPTS).shape == (5, 8, 16) and s(PROMPTS, 3).shape == (5, 3, 16)


@torch.no_grad()
@pytest.mark.parametrize('feedback', FEEDBACKS)
def test_bfloat16(feedback):
    base = lm(initializer_range=.1)
    z = latent_reason(LatentStudent(base, feedback, output_size=12), PROMPTS, 4)
    low = latent_reason(LatentStudent(copy.deepcopy(base).bfloat16(), feedback), PROMPTS, 4)
    assert low.dtype == torch.bfloat16 and low.isfinite().all() and z.shape == (5, 4, 12)
    assert torch.cosine_similarity(low.float(), latent_reason(LatentStudent(base, feedback), PROMPTS, 4), dim=-1).min() > .99


@torch.no_grad()
def test_a_model_without_keys_reads_again():
    s = LatentStudent(cast.random_lm('mamba', state_size=4, num_attention_heads=None, num_key_value_heads=None).double()).double()
    assert_close(latent_reason(s, PROMPTS, 2), torch.cat([slow(s, p, 2)[None] for p in PROMPTS]), atol=1e-6, rtol=0)


def test_steps_that_would_see_nothing_of_the_prompt_are_refused():
    s = LatentStudent(lm())
    s.lm.gradient_checkpointing_enable()
    with torch.no_grad(): before = latent_reason(s.eval(), PROMPTS, 2)
    with pytest.raises(InterlatError, match='Qwen2ForCausalLM kept no keys .*gradient checkpointing'): latent_reason(s.train(), PROMPTS, 2)
    s.lm.gradient_checkpointing_disable()
    assert_close(latent_reason(s, PROMPTS, 2).detach(), before)


def test_realignment_is_the_ridge_regression_of_input_on_output_embeddings():
    base = lm()
    w_in, w_out = (t.detach().double().numpy() for t in (base.get_input_embeddings().weight, base.get_output_embeddings().weight))
    for ridge in (.01, 3.):
        strength = ridge*(w_out**2).sum(0).mean()
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            found = realignment(base, ridge).numpy()
        assert_close(found, np.linalg.solve(w_out.T @ w_out + strength*np.eye(16), w_out.T @ w_in).astype('float32'), atol=1e-5, rtol=1e-4)
        assert_close(found, Ridge(alpha=strength, fit_intercept=False).fit(w_out, w_in).coef_.T.astype('float32'), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('feedback', FEEDBACKS)
def test_a_warning_where_embeddings_are_tied_and_realignment_is_asked_for_and_only_there(feedback):
    def told(tied):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter('always')
            LatentStudent(lm(tie_word_embeddings=tied), feedback)
        return [str(w.message) for w in found]
    assert told(False) == []
    assert told(True) == (['input and output embeddings of Qwen2ForCausalLM are tied: realigned states are as good as unchanged'] if feedback == 'ridge' else [])


@torch.no_grad()
def test_what_goes_back_in_without_training():
    base, z = lm(), 7*torch.randn(6, 16, generator=torch.Generator().manual_seed(3))
    size = embedding_table(base).norm(dim=1).mean()
    norm, ridge, new = (LatentStudent(base, f).feed(z) for f in ('norm', 'ridge', 'projection'))
    for fed, to in ((norm, z), (ridge, z @ realignment(base))):
        assert_close(fed.norm(dim=1), size.expand(6), atol=1e-5, rtol=1e-5)
        assert_close(torch.cosine_similarity(fed, to), torch.ones(6), atol=1e-5, rtol=0)
    assert_close(new.norm(dim=1), size.expand(6), atol=1e-3, rtol=1e-3) # an untrained projection has that size too
    scaled = lm('gemma3_text')
    assert LatentStudent(scaled, 'norm').feed(z).norm(dim=1).mean().item() == pytest.approx(4*scaled.get_input_embeddings().weight.norm(dim=1).mean().item(), rel=1e-4) # √16, as its layers see them


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    "Games, a Qwen2 sender with its tokenizer, and its messages; one task has no message, one has a message without words."
    folder = tmp_path_factory.mktemp('reason')
    games = cast.games(folder/'games', 8)
    tok = cast.tokenizer(games)
    sender = cast.lm(tok)
    store = MessageStore(folder/'store', sender='random')
    g = torch.Generator().manual_seed(0)
    for i, t in enumerate(games[:7]):
        ids = torch.randint(10, 400, (5 + i,), generator=g).tolist()
        store.append(LatentMessage(torch.randn(len(ids), 24, generator=g), ids, tok.decode(ids, skip_special_tokens=True).strip() if i != 3 else '', t.task_id, 'random'))
    return games, tok, sender, store


@pytest.mark.parametrize('family', ['qwen2', 'llama'])
@torch.no_grad()
def test_calibration_is_a_ridge_regression_on_what_the_sender_wrote(written, family):
    "For a student of the sender's family, and of another with another tokenizer and width."
    games, tok, sender, store = written
    other = cast.tokenizer(games, 'llama')
    base, own = (sender, tok) if family == 'qwen2' else (cast.lm(other, 'tiny-llama', hidden_size=20, num_attention_heads=2, num_key_value_heads=2), other)
    inward, outward = [], []
    for t in games:
        if t.task_id not in store or not store[t.task_id].text: continue
        m, prompt = store[t.task_id], encode_chat(own, t.prompt, add_generation_prompt=True).input_ids
        plan = plan_token_ids(own, m.token_ids, m.text)
        assert (plan == m.token_ids) == (family == 'qwen2')
        h = base.base_model(input_ids=torch.tensor([[*prompt, *plan]]))[0][0, len(prompt)-1:-1]
        inward.append((torch.nn.functional.layer_norm(h, h.shape[-1:]), base.get_input_embeddings().weight[plan]))
        outward.append((h, torch.stack([m.h[int(l*len(m)/len(h))] for l in range(len(h))])))
    assert len(inward) == 6
    s = LatentStudent(copy.deepcopy(base), output_size=24)
    fit = calibrate(Agent(s, own), games, store, batch_size=4)
    for pairs, layer, name in ((inward, s.projection[1], 'projection'), (outward, s.output_proj, 'output_proj')):
        x, y = (torch.cat(v).double().numpy() for v in zip(*pairs))
        wanted = Ridge(alpha=.01*((x - x.mean(0))**2).sum(0).mean()).fit(x, y)
        assert_close(layer.weight.numpy(), wanted.coef_.astype('float32'), atol=2e-3*np.abs(wanted.coef_).max(), rtol=0)
        assert_close(layer.bias.numpy(), wanted.intercept_.astype('float32'), atol=2e-3*np.abs(wanted.coef_).max(), rtol=0)
        assert fit[name] == pytest.approx(r2_score(y, wanted.predict(x), multioutput='variance_weighted'), abs=1e-3)
    again = LatentStudent(copy.deepcopy(base), output_size=24)
    assert calibrate(Agent(again, own), games, store, batch_size=1) == pytest.approx(fit, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize('feedback', FEEDBACKS)
def test_a_student_from_disk_says_what_it_said(feedback, tmp_path):
    "Whatever training did to its embeddings meanwhile."
    s = student(lm(), feedback, K=3)
    s.lm.get_input_embeddings().weight *= 1.5
    said = latent_reason(s, PROMPTS)
    again = LatentStudent.from_pretrained(s.save_pretrained(tmp_path), device='cpu')
    assert_close(latent_reason(again, PROMPTS), said, atol=1e-6, rtol=0)
    low = LatentStudent.from_pretrained(tmp_path, 'bfloat16', 'cpu')
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16} and latent_reason(low, PROMPTS).shape == (5, 3, 16)


@torch.no_grad()
def test_lora_is_added_in(tmp_path):
    s = student(lm(initializer_range=.1), K=3, output_size=12)
    add_lora(s.lm, dict(r=2, lora_dropout=0.))
    for n, p in s.named_parameters(): p.data += .2*('lora_B' in n)
    again = LatentStudent.from_pretrained(s.save_pretrained(tmp_path), device='cpu')
    assert_close(latent_reason(again, PROMPTS), latent_reason(s, PROMPTS), atol=1e-4, rtol=0)
    assert not any('lora' in k for k in again.state_dict())


@pytest.mark.parametrize('broken, match', [(lambda d: (d/'student.json').write_text('{'), 'cannot load the student in .*Expecting property name'), (lambda d: (d/'student.safetensors').unlink(), "student's projection not found"),
                                           (lambda d: (d/'student.safetensors').write_bytes(b'nothing'), 'cannot load the student in'), (lambda d: (d/'student.json').write_text('{"feedback": "mlp"}'), "unknown feedback 'mlp'"),
                                           (lambda d: (d/'student.json').write_text('{"size": 3}'), "unexpected keyword argument 'size'"), (lambda d: (d/'model.safetensors').unlink(), 'cannot load the student in'),
                                           (lambda d: (d/'student.json').unlink(), 'this folder holds no student')])
def test_a_damaged_student_is_one_line(broken, match, tmp_path):
    broken(student(lm()).save_pretrained(tmp_path))
    with pytest.raises(InterlatError, match=match) as e: LatentStudent.from_pretrained(tmp_path, device='cpu')
    assert '\n' not in str(e.value)


def test_collecting_goes_on_where_it_was_whatever_the_batches(written, tmp_path):
    games, tok, *_ = written
    s = student(cast.lm(tok, initializer_range=.1), K=3, output_size=12) # a quiet one: it hardly blows float32's rounding up
    def kept(name, *parts, **kw):
        for n in parts: store = collect_latents(Agent(s, tok), games[:n], MessageStore(tmp_path/name, sender='student'), progress=False, **kw)
        return store
    whole, parts = kept('whole', 8), kept('parts', 3, 8, batch_size=2)
    assert len(parts) == 8 and len(list(parts.path.glob('shard-*'))) == 2 + 3
    for t in games:
        assert_close(parts[t.task_id].h, whole[t.task_id].h, atol=1e-4, rtol=0)
        with torch.no_grad(): assert_close(whole[t.task_id].h, slow(s, encode_chat(tok, t.prompt, add_generation_prompt=True).input_ids, 3), atol=1e-4, rtol=0)
    assert whole[games[0].task_id].text == '' and whole[games[0].task_id].token_ids == [-1]*3
    with pytest.raises(InterlatError, match="does not know whose messages"): collect_latents(Agent(s, tok), games, MessageStore(tmp_path/'nameless'), progress=False)
